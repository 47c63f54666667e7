"""Search of AutoBERT-Zero backbones: OP-NAS from bi-branch shared weights.

One idea a file. Without torch: `settings`, `functional_key`, `grammar`, `space`, `mutation`, `priority`, `evolution`, `history`.
With torch: `data`, `masking`, `training`, `supernet`, `proxy`, `glue_proxy`, `workers`. They meet in `run`; `reporting` writes what is left behind.
"""

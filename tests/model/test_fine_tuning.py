"""Training tools: gradient checkpointing, half precision, LoRA, Trainer, devices, two processes."""

import copy
import subprocess
import sys

import accelerate
import datasets
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from autobert_zero.configuration_autobert_zero import (
    PUBLISHED_GENOME,
    ROTARY_ATTENTION,
    Attention,
    Convolution,
    Expression,
    Genome,
)
from autobert_zero.modeling_autobert_zero import (
    AutoBertZeroForMaskedLM,
    AutoBertZeroForSequenceClassification,
    AutoBertZeroModel,
    Mix,
    TokenLayout,
)
from tests.conftest import BATCH, TOKENS, VOCAB, padding_mask, random_genome, tiny_config


pytestmark = pytest.mark.model


def masked_lm_batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(VOCAB, (BATCH, TOKENS))
    labels = torch.where(torch.rand(BATCH, TOKENS) < 0.3, ids, -100)
    labels[:, 0] = ids[:, 0]
    return {"input_ids": ids, "attention_mask": padding_mask() | (labels != -100), "labels": labels}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # some 5.x lack its replacement
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_equal_gradients(reentrant):
    model = AutoBertZeroForMaskedLM(tiny_config(PUBLISHED_GENOME)).train()  # dropout masks must be repeated, too
    inputs = masked_lm_batch()
    calls, gradients = [], []
    model.autobert_zero.encoder.layer[3].mixer.register_forward_hook(lambda *_: calls.append(1))
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(1)
        model.zero_grad()
        model(**inputs).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    assert len(calls) == 3  # once without; once forward and once backward with checkpointing


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_stays_finite(dtype):
    """Random genomes train in half precision, with initial weights much larger than usual."""
    products = Attention(Expression.parse("matmul(matmul(matmul(q, transpose(k)), matmul(q, transpose(k))), q)"))
    for genome in (PUBLISHED_GENOME, Genome([products] * 3), *map(random_genome, range(20))):
        model = AutoBertZeroForMaskedLM(tiny_config(genome, initializer_range=1.0)).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16, init_scale=2.0)
        for _ in range(3):
            with torch.autocast("cpu", dtype=dtype):
                output = model(**masked_lm_batch())
            assert output.loss.isfinite() and output.logits.isfinite().all(), genome
            scaler.scale(output.loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_16_bits(dtype):
    """Of random genomes, and of one that computes a convolution in another type than its weights."""
    gated = Attention(Expression.parse("add(matmul(softmax(matmul(q, transpose(k))), mix(v, v1)), mul(conv7(v), k))"))
    for genome in (PUBLISHED_GENOME, Genome([gated] * 2), *map(random_genome, range(20))):
        model = AutoBertZeroForMaskedLM(tiny_config(genome)).eval()
        inputs = masked_lm_batch()
        expected = model(**inputs).logits
        low = model.to(dtype)(**inputs).logits
        assert low.dtype == dtype and low.isfinite().all(), genome
        real = inputs["attention_mask"]
        assert F.cosine_similarity(low[real].float(), expected[real], -1).mean() > 0.9, genome


def test_autocast_of_documents_in_one_row():
    """The convolution of a mixture is then computed tap by tap."""
    mixture = Attention(Expression.parse("add(matmul(softmax(matmul(q, transpose(k))), v), mix(conv7(v), v1))"))
    model = AutoBertZeroModel(tiny_config(Genome([mixture, Convolution(3)]))).eval()
    ids, positions = torch.randint(VOCAB, (1, 7)), torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    with torch.autocast("cpu", torch.bfloat16):
        together = model(ids, position_ids=positions).last_hidden_state
        apart = [model(ids[:, part]).last_hidden_state for part in (slice(None, 3), slice(3, None))]
    torch.testing.assert_close(together, torch.cat(apart, 1), atol=0.05, rtol=0.05)


def test_mixtures_of_two_types():
    """As autocast on a GPU makes them: there a softmax is in float32."""
    x, y = torch.randn(2, 3), torch.randn(2, 3).bfloat16()
    torch.testing.assert_close(Mix()(x, y, TokenLayout()), (x + y.float()) / 2)


def test_layers_on_two_devices():
    """The mask is where the first layer is."""
    layout = TokenLayout(padding_mask(), packed=padding_mask().flatten().nonzero().squeeze(1))
    elsewhere = torch.empty(int(padding_mask().sum()), 4, device="meta")
    assert layout.pad(elsewhere).shape == (BATCH, TOKENS, 4)
    assert layout._replace(packed=None).pad(layout.pad(elsewhere), zero_pads=True).is_meta


def test_nothing_outside_a_layer_uses_its_weights():
    """They may be on another device, or in shards that are gathered for a call of the layer; and what it returns is moved."""
    shared = Attention(Expression.parse("matmul(softmax(matmul(q, transpose(k))), v1)"))
    model = AutoBertZeroModel(tiny_config(Genome([Convolution(3), ROTARY_ATTENTION, shared]))).eval()
    ids, calls, inside = torch.randint(VOCAB, (BATCH, TOKENS)), [], []
    expected = model(ids, output_attentions=True)
    for layer in model.encoder.layer:
        accelerate.hooks.add_hook_to_module(layer, accelerate.hooks.AlignDevicesHook("cpu", io_same_device=True))
        layer.register_forward_pre_hook(lambda *_: inside.append(1))
        layer.register_forward_hook(lambda *_: inside.clear())
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(lambda *_: calls.append(bool(inside)))
    found = model(ids, output_attentions=True)
    assert len(found.attentions) == 2 and len(calls) > 9 and all(calls)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)
    torch.testing.assert_close(found.attentions, expected.attentions)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft reads it
@pytest.mark.parametrize(
    "adapted",
    [
        {"target_modules": ["query", "word_embeddings"]},
        {"target_modules": ["query"], "trainable_token_indices": [3, 4]},
    ],
    ids=["lora", "tokens"],
)
def test_adapters_of_embeddings(adapted):
    model = peft.get_peft_model(
        AutoBertZeroForMaskedLM(tiny_config(PUBLISHED_GENOME)), peft.LoraConfig(r=2, **adapted)
    )
    model(**masked_lm_batch()).loss.backward()
    assert any("word_embeddings" in name and p.grad is not None for name, p in model.named_parameters())
    with pytest.raises(ValueError, match=rf"input_ids: expected ids from 0 to {VOCAB - 1} \(vocab_size={VOCAB}\)"):
        model(input_ids=torch.tensor([[VOCAB]]))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft reads it
@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups > 1. Merging is not supported")
def test_lora_of_all_linear_maps_and_of_convolutions():
    """Of a depth-wise convolution, too, whose rank must be divisible by its groups."""
    config = tiny_config(Genome([Convolution(3), ROTARY_ATTENTION]))
    for modules, count in (("all-linear", 2 * 2 + 2 + 4 + 1), (["convolution"], 1)):
        lora = peft.LoraConfig(target_modules=modules, r=config.hidden_size, task_type="SEQ_CLS")
        model = peft.get_peft_model(AutoBertZeroForSequenceClassification(config), lora)
        labels = torch.randint(2, (BATCH,))
        inputs = {"input_ids": torch.randint(VOCAB, (BATCH, TOKENS)), "attention_mask": padding_mask()}
        model(**inputs, labels=labels).loss.backward()
        assert sum("lora_B" in name and p.grad is not None for name, p in model.named_parameters()) == count, modules


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft reads it
def test_mixed_adapters_in_a_padded_batch():
    """Every row with its adapter, as if alone."""
    genome = Genome([*random_genome(3), ROTARY_ATTENTION])
    lora = peft.LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)
    model = peft.get_peft_model(AutoBertZeroModel(tiny_config(genome)), lora, adapter_name="one")
    model.add_adapter("two", lora)
    model.eval()
    inputs = {"input_ids": torch.randint(VOCAB, (BATCH, TOKENS)), "attention_mask": padding_mask()}
    names = [("one", "two", "__base__")[row % 3] for row in range(BATCH)]
    mixed = model(**inputs, adapter_names=names).last_hidden_state
    for row, name in enumerate(names):
        alone = {key: x[row : row + 1] for key, x in inputs.items()}
        expected = model(**alone, adapter_names=[name]).last_hidden_state
        torch.testing.assert_close(mixed[row : row + 1], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft reads it
def test_lora_trains_only_its_matrices():
    model = AutoBertZeroForSequenceClassification(tiny_config(PUBLISHED_GENOME))
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=2)
    adapted = peft.get_peft_model(model, config)
    before = {name: p.clone() for name, p in adapted.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    inputs = {"input_ids": torch.randint(VOCAB, (BATCH, TOKENS)), "attention_mask": padding_mask()}
    for _ in range(2):
        adapted(**inputs, labels=torch.randint(2, (BATCH,))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, p in adapted.named_parameters() if not torch.equal(p, before[name])}
    assert all("lora_" in name or "classifier" in name for name in changed)
    # The published attentions use 6 queries and 2 values; key and value are optional.
    assert len([name for name in changed if "lora_B" in name]) == 8
    merged = adapted.eval().merge_and_unload()
    assert type(merged) is AutoBertZeroForSequenceClassification


def test_trainer_needs_nothing_special(tmp_path):
    """Trains, evaluates and saves its best; two classes that differ by one token are learned."""
    torch.manual_seed(3)
    rows = []
    for number in range(64):
        ids = torch.randint(10, VOCAB, (int(torch.randint(3, 9, ())),)).tolist()
        rows.append({"input_ids": [*ids, 5 + number % 2], "attention_mask": [1] * (len(ids) + 1), "label": number % 2})
    data = datasets.Dataset.from_list(rows)

    def collate(features):
        longest = max(len(f["input_ids"]) for f in features)
        padded = {
            name: torch.tensor([f[name] + [0] * (longest - len(f[name])) for f in features])
            for name in ("input_ids", "attention_mask")
        }
        return {**padded, "labels": torch.tensor([f["label"] for f in features])}

    config = tiny_config(Genome([PUBLISHED_GENOME[11], PUBLISHED_GENOME[2]]), initializer_range=0.1)
    model = AutoBertZeroForSequenceClassification(config)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=12,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=5e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        save_total_limit=1,
    )
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.2
    trainer.save_model(str(tmp_path / "best"))
    saved = load_file(tmp_path / "best" / "model.safetensors")
    assert {name: p.shape for name, p in saved.items()} == {n: p.shape for n, p in model.state_dict().items()}


def test_weights_are_loaded_with_a_device_map(tmp_path):
    """Loading builds the model on the meta device: every value must come from the file."""
    model = AutoBertZeroForMaskedLM(tiny_config(random_genome(2))).eval()
    model.save_pretrained(tmp_path)
    ids = torch.randint(VOCAB, (BATCH, TOKENS))
    for device_map in ("auto", {"": "cpu"}, {"autobert_zero": "cpu", "predictions": "cpu"}):
        loaded = AutoBertZeroForMaskedLM.from_pretrained(tmp_path, device_map=device_map)
        assert {p.device.type for p in loaded.parameters()} == {"cpu"}
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


def test_offloaded_weights(tmp_path):
    """Hooks load the weights of modules that are called, so every parameter must belong to a called module."""
    genome = Genome([ROTARY_ATTENTION, *PUBLISHED_GENOME[1:3], *random_genome(2)])
    model = AutoBertZeroModel(tiny_config(genome, position_embedding_type="none")).eval()
    model.save_pretrained(tmp_path / "model")
    ids = torch.randint(VOCAB, (BATCH, TOKENS))
    layers = {f"encoder.layer.{n}": "disk" if n % 2 else "cpu" for n in range(len(genome))}
    some_on_disk = AutoBertZeroModel.from_pretrained(
        tmp_path / "model",
        device_map={"embeddings": "cpu", **layers, "pooler": "cpu"},
        offload_folder=tmp_path / "disk",
    )
    offloaded = accelerate.cpu_offload(copy.deepcopy(model), execution_device="cpu")
    for mask in (None, padding_mask()):
        expected = model(ids, mask).last_hidden_state
        for other in (some_on_disk, offloaded):
            torch.testing.assert_close(other(ids, mask).last_hidden_state, expected)


def test_the_meta_device(tmp_path):
    """For tools that estimate memory and count operations."""
    with torch.device("meta"):
        genome = Genome([ROTARY_ATTENTION, *random_genome(0)])
        model = AutoBertZeroModel(tiny_config(genome, position_embedding_type="none"))
        ids = torch.ones(2, 7, dtype=torch.long)
        assert model(ids, attention_mask=ids).last_hidden_state.shape == (2, 7, 24)


_TWO_PROCESSES = """
import gc, sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from autobert_zero.configuration_autobert_zero import AutoBertZeroConfig
from autobert_zero.modeling_autobert_zero import AUTO_CLASSES
torch.set_num_threads(1)
dist.init_process_group("gloo")
assert dist.get_world_size() == 2
config = AutoBertZeroConfig.from_pretrained(sys.argv[1])
shapes = {"AutoModelForMultipleChoice": (4, 2, 7)}
labels = {
    "AutoModelForPreTraining": {"labels": torch.ones(4, 7, dtype=torch.long), "next_sentence_label": torch.ones(4, dtype=torch.long)},
    "AutoModelForMaskedLM": {"labels": torch.ones(4, 7, dtype=torch.long)},
    "AutoModelForTokenClassification": {"labels": torch.ones(4, 7, dtype=torch.long)},
    "AutoModelForQuestionAnswering": {"start_positions": torch.ones(4, dtype=torch.long), "end_positions": torch.ones(4, dtype=torch.long)},
}
for auto_class, model_class in AUTO_CLASSES.items():
    if auto_class.__name__ == "AutoModel":
        continue  # has no loss
    torch.manual_seed(dist.get_rank())
    model = DistributedDataParallel(model_class(config))  # with the weights of process 0
    for step in range(2):  # the second fails if a parameter had no gradient in the first
        ids = torch.randint(99, shapes.get(auto_class.__name__, (4, 7)))
        mask = torch.ones_like(ids)
        mask[0, ..., 4 + dist.get_rank():] = 0
        answers = labels.get(auto_class.__name__, {"labels": torch.ones(4, dtype=torch.long)})
        model(input_ids=ids, attention_mask=mask, **answers).loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    gradients = [torch.empty_like(gradient) for _ in range(2)]
    dist.all_gather(gradients, gradient)
    assert torch.equal(*gradients) and gradient.isfinite().all()
print(f"PROCESS {dist.get_rank()} OF {dist.get_world_size()}\\n", end="")  # one write: lines of two processes mix
# Each process must be finished, with its threads, before the other ends: gloo may abort otherwise.
del model, gradients
gc.collect()
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_need_no_search_for_unused_parameters(tmp_path):
    tiny_config(Genome([*random_genome(1), *random_genome(4)])).save_pretrained(tmp_path)
    script = tmp_path / "train.py"
    script.write_text(_TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*launch, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "PROCESS 0 OF 2" in done.stdout and "PROCESS 1 OF 2" in done.stdout

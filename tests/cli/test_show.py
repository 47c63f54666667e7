"""The command `show`, and bad arguments of the commands."""

import pytest

from autobert_zero.configuration_autobert_zero import PUBLISHED_GENOME, SELF_ATTENTION
from autobert_zero.search.cli.main import main
from autobert_zero.search.report.drawing import draw_genome, to_svg


def test_pictures(tmp_path, capsys):
    for name in ("a.svg", "b.png"):
        main(["show", "autobert-zero-base", "--output", str(tmp_path / name)])
    assert (tmp_path / "a.svg").read_text() == to_svg(draw_genome(PUBLISHED_GENOME))
    assert (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out == f"{tmp_path / 'a.svg'}\n{tmp_path / 'b.png'}\n"
    for arguments, message in (
        (
            ["show", "bert-small", "--output", str(tmp_path / "a.pdf")],
            "expected a file that ends in .svg or .png, got '.pdf'",
        ),
        (["show", "bert-small", "--output", str(tmp_path / "no" / "a.svg")], "cannot write"),
        (["show", "softmax(q"], "source: expression: expected"),
        (["show", str(tmp_path)], "expected a summary.json, config.json or history.jsonl"),
        (["draw"], "invalid choice: 'draw'"),
        ([], "the following arguments are required: COMMAND"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert message in capsys.readouterr().err


def test_text_and_formulas(capsys):
    main(["show", str(SELF_ATTENTION.expression)])
    assert capsys.readouterr().out.startswith("  1  attention A\n\nA = matmul(softmax(")
    main(["show", str(SELF_ATTENTION.expression), "--latex"])
    assert r"\mathrm{A} &= \operatorname{softmax}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["show", str(SELF_ATTENTION.expression), "--latex", "--output", "a.svg"])
    assert "--output: not allowed with argument --latex" in capsys.readouterr().err

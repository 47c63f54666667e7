"""transformers' pipeline tests, on tiny models that are saved here instead of models of the Hub.

The source distribution has the mixin that loads a model, builds a pipeline and runs it on batches, but not the classes
that check the output of each task. Those are here.
"""

import json
import os
import tempfile
from pathlib import Path

from transformers import BertTokenizerFast, pipeline


class TaskTest:
    """What the mixin needs of a task: a pipeline, examples, and a check of outputs."""

    task: str
    examples = ["This is a test", "A longer test, with more words in it, of what a pipeline does", "Short"]
    arguments: dict = {}

    def get_test_pipeline(self, model, tokenizer, dtype="float32", **processors):
        made = pipeline(self.task, model=model, tokenizer=tokenizer, dtype=dtype)
        made._preprocess_params.update(self.arguments)
        return made, self.examples

    def run_pipeline_test(self, made, examples):
        alone = [made(example) for example in examples]
        together = made(examples, batch_size=len(examples))
        for a, b in zip(alone, together, strict=True):
            self.check(a)
            self.check(b)

    def check(self, output):
        raise NotImplementedError


class FeatureExtraction(TaskTest):
    task = "feature-extraction"

    def check(self, output):
        [sequence] = output
        assert len(sequence) > 2 and len({len(vector) for vector in sequence}) == 1


class FillMask(TaskTest):
    task = "fill-mask"
    examples = [f"{text} [MASK]" for text in TaskTest.examples]

    def check(self, output):
        assert len(output) == 5
        assert all(set(guess) == {"score", "token", "token_str", "sequence"} for guess in output)
        scores = [guess["score"] for guess in output]
        assert scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1.001


class TextClassification(TaskTest):
    task = "text-classification"

    def check(self, output):
        [answer] = output if isinstance(output, list) else [output]
        assert answer["label"] in ("LABEL_0", "LABEL_1") and 0.49 < answer["score"] <= 1


class TokenClassification(TaskTest):
    task = "token-classification"

    def check(self, output):
        assert output
        for entity in output:
            assert entity["entity"] in ("LABEL_0", "LABEL_1") and entity["start"] < entity["end"]


class ZeroShot(TaskTest):
    task = "zero-shot"
    arguments = {"candidate_labels": ["politics", "health"], "hypothesis_template": "This is about {}"}

    def get_test_pipeline(self, model, tokenizer, dtype="float32", **processors):
        model.config.label2id = {"contradiction": 0, "entailment": 1}
        made = pipeline("zero-shot-classification", model=model, tokenizer=tokenizer, dtype=dtype)
        made._preprocess_params.update(self.arguments)
        return made, self.examples

    def check(self, output):
        assert set(output["labels"]) == {"politics", "health"}
        assert abs(sum(output["scores"]) - 1) < 1e-2


FOLDER = Path(tempfile.mkdtemp(prefix="tiny-models-"))
SUMMARY = FOLDER / "reports" / "tiny_model_summary.json"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", *"abcdefghijklmnopqrstuvwxyz"]
VOCABULARY += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]


HEADS = {
    FeatureExtraction: "Model",
    FillMask: "ForMaskedLM",
    TextClassification: "ForSequenceClassification",
    TokenClassification: "ForTokenClassification",
    ZeroShot: "ForSequenceClassification",
}


def tasks(model_classes) -> dict[str, type]:
    """The model class of each task."""
    return {test.task: next(c for c in model_classes if c.__name__.endswith(head)) for test, head in HEADS.items()}


def save_tiny_models(models) -> None:
    """Save `models`, each with a tokenizer, where the mixin loads them from."""
    for model in models:
        path = FOLDER / model.config.model_type / type(model).__name__
        model.save_pretrained(path)
        vocabulary = path / "vocab.txt"
        vocabulary.write_text("\n".join(VOCABULARY), encoding="utf-8")
        BertTokenizerFast(vocab=str(vocabulary), model_max_length=64).save_pretrained(path)


def pipeline_mixin(model_classes):
    """The mixin, imported with the environment in which it finds the models of `model_classes`."""
    SUMMARY.parent.mkdir()
    summary = {
        c.__name__: {"tokenizer_classes": ["BertTokenizerFast"], "processor_classes": []} for c in model_classes
    }
    SUMMARY.write_text(json.dumps(summary), encoding="utf-8")
    os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = str(FOLDER)
    from transformers_tests import test_pipeline_mixin

    for test in HEADS:
        test_pipeline_mixin.pipeline_test_mapping[test.task]["test"] = f"{__name__}.{test.__name__}"
    return test_pipeline_mixin.PipelineTesterMixin

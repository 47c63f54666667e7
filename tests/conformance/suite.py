"""transformers' common tests on our model classes, and on BERT's for comparison.

Run by `make conformance` (see README.md in this folder), not with the other tests: the common tests must be fetched
first.
"""

import sys
import unittest

import torch
import transformers
from transformers.models.auto import modeling_auto

from autobert_zero import modeling_autobert_zero
from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Attention, AutoBertZeroConfig, Genome
from tests.conformance import pipelines
from tests.conformance.fetch import SOURCE


sys.path.insert(0, str(SOURCE))

from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import (
    ModelTesterMixin,
    ids_tensor,
    random_attention_mask,
)
from transformers_tests.test_training_mixin import TrainingTesterMixin


# Each class, and the table of models by which the common tests know its labels.
HEADS = {
    "Model": "",
    "ForMaskedLM": "FOR_MASKED_LM_",
    "ForMultipleChoice": "FOR_MULTIPLE_CHOICE_",
    "ForNextSentencePrediction": "FOR_NEXT_SENTENCE_PREDICTION_",
    "ForPreTraining": "FOR_PRETRAINING_",
    "ForQuestionAnswering": "FOR_QUESTION_ANSWERING_",
    "ForSequenceClassification": "FOR_SEQUENCE_CLASSIFICATION_",
    "ForTokenClassification": "FOR_TOKEN_CLASSIFICATION_",
}
BERT_CLASSES = tuple(getattr(transformers, f"Bert{head}") for head in HEADS)
OUR_CLASSES = tuple(getattr(modeling_autobert_zero, f"AutoBertZero{head}") for head in HEADS)
for head, table in HEADS.items():
    getattr(modeling_auto, f"MODEL_{table}MAPPING_NAMES")["autobert_zero"] = f"AutoBertZero{head}"

PipelineTesterMixin = pipelines.pipeline_mixin([*BERT_CLASSES, *OUR_CLASSES])

# Small, and different from each other.
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 512,
    "type_vocab_size": 16,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "pad_token_id": 0,
}


class ModelTester:
    """What the common tests need of a model: its configuration and its inputs."""

    batch_size, seq_length, num_choices, is_training = 13, 7, 4, True

    def __init__(self, parent, tests):
        self.parent = parent
        self.config_class = tests.config_class
        self.causal_lm_class = tests.pipeline_model_mapping["fill-mask"]  # what the training test trains
        self.kwargs = dict(SIZES) if tests.genome is None else {**SIZES, "genome": tests.genome.to_list()}
        for name, value in self.kwargs.items():
            setattr(self, name, value)

    def get_config(self):
        return self.config_class(**self.kwargs)

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.seq_length]
        return self.get_config(), {
            "input_ids": ids_tensor(shape, self.vocab_size),
            "token_type_ids": ids_tensor(shape, self.type_vocab_size),
            "attention_mask": random_attention_mask(shape),
        }


class CommonTests(ModelTesterMixin, PipelineTesterMixin, TrainingTesterMixin):
    config_class = AutoBertZeroConfig
    all_model_classes = OUR_CLASSES
    pipeline_model_mapping = pipelines.tasks(OUR_CLASSES)
    genome: Genome | None = None
    model_tester: ModelTester

    @classmethod
    def setUpClass(cls):
        config = ModelTester(None, cls).get_config()
        pipelines.save_tiny_models(model_class(config) for model_class in cls.all_model_classes)

    def setUp(self):
        self.model_tester = ModelTester(self, type(self))
        self.config_tester = ConfigTester(self, config_class=self.config_class, hidden_size=36)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class.__name__.endswith("ForPreTraining"):
            shape = (self.model_tester.batch_size, self.model_tester.seq_length)
            inputs["labels"] = torch.zeros(shape, dtype=torch.long)
            inputs["next_sentence_label"] = torch.zeros(shape[:1], dtype=torch.long)
        return inputs

    def test_config(self):
        self.config_tester.run_common_tests()


class BertTest(CommonTests, unittest.TestCase):
    """For comparison: what transformers' BERT passes and skips in the same suite."""

    config_class = transformers.BertConfig
    all_model_classes = BERT_CLASSES
    pipeline_model_mapping = pipelines.tasks(BERT_CLASSES)


class SelfAttentionTest(CommonTests, unittest.TestCase):
    genome = Genome([SELF_ATTENTION] * 2)


class PublishedTest(CommonTests, unittest.TestCase):
    """An attention that is lowered, and a convolution."""

    published = AutoBertZeroConfig().parsed_genome()
    genome = Genome([published[9], published[2]])

    def test_attention_outputs(self):
        """There are weights of the one attention only; transformers' tests of hybrid models expect the same."""
        self.model_tester.num_hidden_layers = 1
        super().test_attention_outputs()


class ReferenceTest(CommonTests, unittest.TestCase):
    """Attentions that run node by node."""

    genome = Genome.from_list(
        [
            {"kind": Attention.kind, "expression": "matmul(softmax(cosine_similarity(q, k)), add(v, p))"},
            {"kind": Attention.kind, "expression": "add(matmul(scale(euclidean_distance(k, v)), softsign(q)), k)"},
        ]
    )

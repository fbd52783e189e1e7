"""Model folders of a few thousand weights, made from configs on the spot: one for each head."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
POSITIONS = 64
_SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip


def tokenizer() -> Any:
    """BERT's word pieces of single characters: a word of n letters is n tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    signs = string.ascii_lowercase + string.digits + ".,'?-"
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *signs, *(f"##{c}" for c in signs)]
    vocabulary = {name: i for i, name in enumerate(names)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=POSITIONS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def bert(folder: Path, head: str, seed: int = 0, **more: Any) -> Path:
    """A BERT with the class ``Bert<head>`` and its tokenizer in `folder`."""
    import torch
    import transformers

    torch.manual_seed(seed)
    own = tokenizer()
    config = transformers.BertConfig(
        vocab_size=len(own), max_position_embeddings=POSITIONS, **(_SIZES | more)
    )
    model = getattr(transformers, f"Bert{head}")(config).eval()
    # Fresh weights are so small that all answers come out alike.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    return folder


def tagger(folder: Path) -> Path:
    """A token classifier of `TAGS`."""
    names = dict(enumerate(TAGS))
    return bert(folder, "ForTokenClassification", id2label=names, num_labels=len(TAGS))


def answerer(folder: Path) -> Path:
    """A question-answering model."""
    return bert(folder, "ForQuestionAnswering")


def encoder(folder: Path, pooling: str | None = None) -> Path:
    """A model without a head; `pooling` is stored as sentence-transformers stores it."""
    bert(folder, "Model")
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        marks = {f"pooling_mode_{pooling}": True, "pooling_mode_sqrt": False}
        stored = {"word_embedding_dimension": 32} | marks
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(stored))
    return folder


def vision(folder: Path, labels: int = 4) -> Path:
    """A ViT of 8 x 8 pixels in patches of 4, and its image processor."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    config = ViTConfig(image_size=8, patch_size=4, num_labels=labels, **_SIZES)
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder

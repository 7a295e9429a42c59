"""The sections of a configuration: each holds the settings that are read together."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from zslkit.config.choices import kind_of, parse_tower_mode
from zslkit.data.schema import CaptionNoise
from zslkit.data.strict import Strict, as_list
from zslkit.zeroshot.prompts import find_templates

INPUTS = ("manifest", "images", "captions", "code", "packages", "processes")
"""What a run reads besides its settings; a resume compares them."""


class _Section(Strict):
    """Settings that are read together; their functions say which section they read."""

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: Any) -> Any:
        """Read "null" and "[1, 2]", as papermill passes them; refuse true as a number."""
        annotation = str(cls.model_fields[info.field_name].annotation)
        if isinstance(value, bool) and "bool" not in annotation:
            raise ValueError(f"must be {annotation}, not true or false")
        if isinstance(value, str) and value.lower() in ("none", "null") and "None" in annotation:
            return None
        if isinstance(value, str) and value.startswith("[") and "tuple" in annotation:
            return as_list(value)
        if isinstance(value, str) and value.startswith("{") and "dict" in annotation:
            return json.loads(value)
        return value


class DataSettings(_Section):
    """Which pairs and labelled images a run reads."""

    manifest: str = "toy"
    """Pairs to train on: a name in data_manifests, a manifest file, or any table or folder."""
    data_root: str | None = None
    """Folder that the manifest's paths start from; None: the manifest's own folder."""
    image_field: str | None = None
    """Column of images in manifest; None: that with a usual name."""
    caption_field: str | None = None
    """Column of captions in manifest; None: that with a usual name."""
    split_shares: dict[str, float] | None = None
    """Shares of the splits drawn where manifest names none; None: train 0.8, dev 0.1, test 0.1."""
    train_split: str = "train"
    """Split of the manifest to train on."""
    dev_split: str = "dev"
    """Split that chooses settings; a fifth of the training images where the manifest has none."""
    test_split: str = "test"
    """Split of the manifest for image-text retrieval after training."""
    zeroshot_manifest: str | None = "toy"
    """Labelled images for zero-shot evaluation; None: no zero-shot figure."""
    zeroshot_split: str = "test"
    """Split of zeroshot_manifest to evaluate on."""
    zeroshot_data_root: str | None = None
    """Folder that the paths of zeroshot_manifest start from; None: data_root."""
    prompt_templates: str | tuple[str, ...] = "simple"
    """A named set of templates (none, simple, ensemble, clip80) or a list of texts with {}."""
    caption_noise: float = Field(0.0, ge=0.0, le=1.0)
    """Share of training images whose captions are swapped among themselves, seeded."""
    caption_noise_kind: CaptionNoise = "image"
    """image (all captions of an image), or single ones: caption, similar, words, boilerplate."""
    caption_noise_file: str | None = None
    """Published noise: .npy or text, which caption (from 0) stands in each place."""
    review: str | None = None
    """Decisions on suspect captions, as data decide writes them; training reads them."""
    max_pairs: int | None = Field(None, ge=1)
    """Train on this many pairs, drawn with the seed; None: all."""
    max_unreadable: float = Field(0.05, ge=0.0, le=1.0)
    """Share of missing, unreadable and caption-less images above which a run stops."""

    @field_validator("manifest", "zeroshot_manifest", mode="before")
    @classmethod
    def _name_of_source(cls, value: Any) -> Any:
        """Name a DataFrame or Dataset, so that the settings stay plain text."""
        if value is None or isinstance(value, str | Path):
            return value if value is None else str(value)
        from zslkit.data.readers.objects import name_object

        return name_object(value)

    @field_validator("prompt_templates")
    @classmethod
    def _known_templates(cls, value: Any) -> Any:
        find_templates(value)
        return value

    @property
    def source(self) -> dict[str, Any]:
        """Options under which ``open_pairs`` reads ``manifest``."""
        names = ("data_root", "image_field", "caption_field", "split_shares", "max_unreadable")
        # where the splits of a set were drawn lies among the features of its images
        cache = {"cache_dir": getattr(self, "cache_dir", None)}
        return {name: getattr(self, name) for name in names} | cache

    @property
    def zeroshot_source(self) -> dict[str, Any]:
        """Options under which ``open_pairs`` reads ``zeroshot_manifest``."""
        root = self.data_root if self.zeroshot_data_root is None else self.zeroshot_data_root
        return {"data_root": root, "max_unreadable": self.max_unreadable}


class ModelSettings(_Section):
    """Both towers and their projections."""

    image_encoder: str = "timm:test_byobnet"
    """torchvision:NAME, timm:NAME, open_clip:MODEL/WEIGHTS or hf:NAME_OR_FOLDER (CLIP, SigLIP)."""
    image_weights: str = "none"
    """pretrained (downloads, or from a package), none (from scratch), or a safetensors file."""
    image_tower: str = "train"
    """train, frozen (BatchNorm statistics too) or last_blocks=N."""
    image_size: int = Field(48, ge=16)
    """Side of the square the image encoder sees, in pixels."""
    text_encoder: str = "small"
    """small (no download), hf:NAME_OR_FOLDER pooled by its card, or open_clip:MODEL/WEIGHTS."""
    text_weights: Literal["pretrained", "none"] = "none"
    """pretrained, or none (from scratch)."""
    text_tower: str = "train"
    """train, frozen or last_blocks=N."""
    max_tokens: int = Field(32, ge=2)
    """Texts are cut to this many tokens."""
    embedding_dim: int = Field(128, ge=2)
    """Dimension D of the shared unit sphere."""
    projection: Literal["linear", "mlp"] = "linear"
    """Map from either tower's features to the shared space."""
    image_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the image features that enter the projection."""
    text_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the text features that enter the projection."""

    @model_validator(mode="after")
    def _known_modes(self) -> "ModelSettings":
        for name in ("image_tower", "text_tower"):
            parse_tower_mode(getattr(self, name), name)
        return self


class ObjectiveSettings(_Section):
    """The loss, its soft targets and the teacher that gives them."""

    fit: Literal["gradient", "ridge", "cca"] = "gradient"
    """gradient trains; ridge and cca fit linear projections of frozen towers in closed form."""
    init: Literal["random", "ridge", "cca"] = "random"
    """Projections that a training starts from: random, or such a closed form."""
    contrastive_loss: str = "softmax"
    """softmax (InfoNCE), sigmoid (SigLIP), which learns a bias besides the scale, or your own."""
    soft_targets: str = "teacher"
    """none (plain InfoNCE), label_smoothing, teacher, transport, progressive, or your own."""
    contrastive_weight: float = Field(0.5, ge=0.0, le=1.0)
    """Share of the one-hot contrastive loss; distillation gets the rest."""
    label_smoothing: float = Field(0.1, ge=0.0, lt=1.0)
    """Mass that label_smoothing spreads over the other candidates."""
    teacher: Literal["ema", "frozen", "previous"] = "ema"
    """Moving average of the student, an earlier run, or the student a generation ago."""
    teacher_run: str | None = None
    """Folder of the frozen teacher, a run or exported; or open_clip:MODEL/WEIGHTS or hf:NAME."""
    ema_decay: float = Field(0.99, ge=0.0, lt=1.0)
    """Decay of the moving average per optimizer step."""
    ema_warmup: bool = True
    """Average less at first, by (1 + n) / (10 + n) after n steps: a young teacher knows little."""
    generation_epochs: int = Field(5, ge=1)
    """Epochs after which the previous-generation teacher becomes a copy of the student."""
    teacher_temperature: float = Field(0.1, gt=0.0)
    """Soft-label temperature: divides teacher similarities before the softmax."""
    image_similarity_weight: float = Field(0.0, ge=0.0)
    """Weight w_v of image-image similarities in teacher and transport targets."""
    text_similarity_weight: float = Field(0.0, ge=0.0)
    """Weight w_t of text-text similarities in teacher and transport targets."""
    epsilon: float = Field(0.15, gt=0.0)
    """Entropic regularisation of transport targets, in units of similarity."""
    sinkhorn_iterations: int = Field(5, ge=1)
    """Sinkhorn iterations of transport targets."""
    trusted_start: float = Field(1.0, ge=0.0, le=1.0)
    """Share of pairs that progressive targets keep one-hot at the first step."""
    trusted_end: float = Field(0.0, ge=0.0, le=1.0)
    """The same at the last step; linear in between."""
    pair_trust: bool = False
    """Weigh each pair by the probability that its caption is right, as trust_judge finds it."""
    trust_judge: Literal["teacher", "held_out"] = "teacher"
    """teacher (its losses, again each epoch) or held_out (closed forms that never saw the pair)."""
    pair_trust_epoch: int = Field(3, ge=1)
    """First epoch (from 0) with the teacher's weights; a younger one cannot tell."""
    logit_scale: float = Field(20.0, ge=1.0)
    """Initial scale of similarities (1 / temperature), contrastive and distillation."""
    logit_bias: float | None = None
    """Initial bias of the sigmoid contrastive loss; None: -ln(batch_size - 1), the base rate."""
    learn_logit_scale: bool = True
    """Learn both scales; false keeps them fixed."""
    max_logit_scale: float = Field(100.0, ge=1.0)
    """Learned scales are clamped to [1, max_logit_scale]."""

    @field_validator("contrastive_loss", "soft_targets")
    @classmethod
    def _known_kind(cls, value: str, info: Any) -> str:
        return kind_of(info.field_name, value).name

    @model_validator(mode="after")
    def _objective_fits_together(self) -> "ObjectiveSettings":
        if self.teacher == "frozen" and self.teacher_run is None and self.needs_teacher:
            raise ValueError("teacher='frozen' needs teacher_run, the folder of an earlier run")
        if self.logit_scale > self.max_logit_scale:
            raise ValueError(
                f"logit_scale={self.logit_scale} is above max_logit_scale={self.max_logit_scale}"
            )
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether soft targets or pair weights come from a teacher."""
        judges = self.pair_trust and self.trust_judge == "teacher"
        return judges or kind_of("soft_targets", self.soft_targets).needs_teacher

    @property
    def start(self) -> str:
        """What the projections start from: random, ridge or cca."""
        return self.init if self.fit == "gradient" else self.fit


class OptimisationSettings(_Section):
    """Batches, steps and how each changes the weights."""

    epochs: int = Field(16, ge=1)
    """Passes over the training pairs."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps; the schedule ends there too."""
    batch_size: int = Field(128, ge=2)
    """Pairs that are contrasted with each other in one optimizer step."""
    accumulation: int = Field(1, ge=1)
    """Chunks a batch is embedded in; the loss still sees the whole batch."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw or sgd (with momentum)."""
    learning_rate: float = Field(1e-2, gt=0.0)
    """Peak learning rate."""
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    """Momentum of sgd."""
    weight_decay: float = Field(0.05, ge=0.0)
    """Weight decay, not on norms, biases and scales."""
    warmup_steps: int = Field(50, ge=0)
    """Steps of linear warm-up before the cosine."""
    clip_norm: float | None = Field(5.0, gt=0.0)
    """Largest global gradient norm; None: no clipping."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto takes bfloat16 where the device computes in it, float32 elsewhere."""

    @model_validator(mode="after")
    def _batch_fits_together(self) -> "OptimisationSettings":
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation={self.accumulation} must divide batch_size={self.batch_size}"
            )
        return self


class RunSettings(_Section):
    """Where and how a run computes, and what it leaves."""

    seed: int = Field(0, ge=0)
    """Initial weights, data order, augmentation, caption noise."""
    output_dir: str = "reports/run"
    """Folder of the run: config, metrics, checkpoints."""
    resume: bool = False
    """Go on from the checkpoint in output_dir when there is one."""
    checkpoint_every: int = Field(100, ge=1)
    """Optimizer steps between checkpoints; one more is written at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """The last checkpoints that stay, so that one can be damaged."""
    keep_every: int | None = Field(None, ge=1)
    """Every n-th checkpoint stays as well; None: none but the last and the best."""
    best_by: str | None = "held-out recall@10"
    """Column of metrics.jsonl by whose highest value a checkpoint is written and stays."""
    allow_changed: str | None = None
    """May differ on resume, by commas: code, packages, processes, manifest, images, captions."""
    cache_dir: str | None = "reports/cache"
    """Embeddings of frozen towers; None: not kept."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of torch, on which the last bits of results depend; None: its default."""
    workers: int = Field(0, ge=0)
    """Processes that read and augment images."""
    tensorboard: bool = False
    """Also write TensorBoard events (needs the tensorboard extra)."""

    @field_validator("allow_changed")
    @classmethod
    def _known_inputs(cls, value: str | None) -> str | None:
        for name in value.split(",") if value else ():
            if name.strip() not in INPUTS:
                raise ValueError(f"{name.strip()!r} is none of {', '.join(INPUTS)}")
        return value

    @property
    def allowed_changes(self) -> set[str]:
        """The names that ``allow_changed`` lists."""
        return {name.strip() for name in (self.allow_changed or "").split(",")} - {""}

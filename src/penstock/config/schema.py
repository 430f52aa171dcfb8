"""Every setting of Penstock, typed and documented, in one place.

A configuration is a frozen tree of sections. It is read from TOML (`load.py`), changed with dotted
`--set section.key=value`, checked here, and written back resolved into the run's folder, where it alone
reproduces the run. A field is read somewhere or it does not exist. Values of "auto" are settled once, when
the run starts (`engine/starting/resolve.py`), and the settled value is what the run's `config.toml` holds.

Field descriptions are the user's documentation (`penstock config --explain section.key`): units, allowed
range, and when to change it. Checks that involve two fields live in `Config.check_pairs` and name both.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from penstock.config.refusals import impossible
from penstock.config.section import Count, Fraction, Positive, Section
from penstock.config.watching import AlertsSection, CostSection, MetricsSection


class RunSection(Section):
    """Identity of the run and the machine it may use."""

    seed: Count = Field(1234, description="Seed of weights, data order and samples. Same seed, same run, on any number of ranks.")
    name: str = Field("", pattern=r"^[A-Za-z0-9._-]*$", description="Name of the run's folder; empty: made from the date, time and preset.")
    dir: str = Field("runs", min_length=1, description="Folder that holds the runs.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to compute; auto: CUDA where there is a GPU, else the CPU.")
    threads: Count = Field(0, description="CPU threads a rank computes with; 0: the host's cores divided by its ranks.")


class DataSection(Section):
    """Which text, how it becomes tokens, and what is held out."""

    path: str = Field(
        "stdlib",
        min_length=1,
        description="File, folder or glob of text, Markdown, source code, .jsonl or .parquet; 'hf:NAME' for a Hugging Face dataset; "
        "'stdlib' for the Python standard library's own source.",
    )
    text_field: str = Field("text", min_length=1, description="Field of a JSONL object or Parquet column that holds the text.")
    tokenizer: str = Field(
        "bpe",
        min_length=1,
        description="'bpe' (byte-level BPE trained on the corpus), 'bytes', 'chars', or the path of a tokenizer.json.",
    )
    vocab: Annotated[int, Field(ge=260, le=1_000_000)] = Field(8192, description="Vocabulary size of a trained BPE; not used by other tokenizers.")
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.05, description="Share of the corpus held out for validation.")
    split: Literal["auto", "document", "tail"] = Field(
        "auto",
        description="How to hold out: 'document' draws whole documents by hash, 'tail' takes the last share of the text; "
        "auto: by document, or by tail where the corpus is a single document.",
    )
    document_mask: bool = Field(False, description="Attend only within a document when several are packed into one sequence.")
    max_bytes: Count = Field(0, description="Use at most so many bytes of the corpus; 0: all of it.")
    skip: str = Field(
        "",
        pattern=r"^\s*(\d+(-\d+)?(\s+|$))*$",
        description="Samples to leave out, such as '1936-1951 4000', by their numbers in `penstock runs samples`; later ones move up. A run adds "
        "to it by itself where alerts.act says so.",
    )
    cache_dir: str = Field("", description="Folder for prepared token shards; empty: ~/.cache/penstock/tokens.")
    workers: Count = Field(0, description="Processes that prepare data, 80 to 130 MiB each; 0: one for each core, at most 6.")


class MoESection(Section):
    """Mixture of experts in DeepSeek-V3's shape (arXiv 2412.19437, section 2.1.2); off while `experts` is 0."""

    experts: Count = Field(0, description="Routed experts per layer; 0: every layer is dense.")
    active: Positive = Field(2, description="Routed experts each token goes to.")
    shared: Count = Field(1, description="Shared experts that every token goes through.")
    dim: Count = Field(0, description="Hidden width of one expert; 0: ffn_dim divided by (active + shared).")
    first_dense: Count = Field(0, description="Leading layers that stay dense.")
    scoring: Literal["sigmoid", "softmax"] = Field("sigmoid", description="Router's score: sigmoid as DeepSeek-V3, softmax as Qwen3-MoE.")
    normalise: bool = Field(True, description="Scale the chosen experts' weights to sum to one.")
    scale: Annotated[float, Field(gt=0.0)] = Field(1.0, description="Factor on the routed experts' output (DeepSeek-V3: 2.5).")
    groups: Positive = Field(1, description="Expert groups; tokens choose groups first (device-limited routing).")
    active_groups: Positive = Field(1, description="Groups a token may choose its experts from.")
    bias_rate: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.001, description="Step of the auxiliary-loss-free balancing bias per optimizer step (arXiv 2408.15664); 0: no balancing."
    )


class RopeScaling(Section):
    """Llama 3's frequency scaling of the rotary embedding for contexts beyond the original; off while `factor` is 1."""

    factor: Annotated[float, Field(ge=1.0)] = Field(1.0, description="Stretch of the low frequencies; 1: none.")
    low: Annotated[float, Field(gt=0.0)] = Field(1.0, description="Low-frequency factor.")
    high: Annotated[float, Field(gt=0.0)] = Field(4.0, description="High-frequency factor.")
    original_context: Positive = Field(8192, description="Context the frequencies were first trained for, in tokens.")


class ModelSection(Section):
    """The decoder: RMSNorm, rotary embedding, grouped-query attention, SwiGLU or a mixture of experts."""

    layers: Positive = Field(4, description="Number of decoder blocks.")
    dim: Positive = Field(128, description="Width of the residual stream.")
    heads: Positive = Field(4, description="Query heads.")
    kv_heads: Count = Field(0, description="Key and value heads (grouped-query attention); 0: as many as heads.")
    head_dim: Count = Field(0, description="Width of one head; 0: dim divided by heads.")
    ffn_dim: Count = Field(0, description="Hidden width of SwiGLU; 0: 8/3 of dim, rounded up to a multiple of 32.")
    vocab: Count = Field(0, description="Rows of the embedding; 0: the tokenizer's size (rounded up to a multiple of 64 from 4096 on).")
    context: Annotated[int, Field(ge=2)] = Field(256, description="Sequence length in tokens.")
    norm_eps: Annotated[float, Field(gt=0.0, le=0.1)] = Field(1e-5, description="Epsilon of RMSNorm.")
    rope_theta: Annotated[float, Field(gt=1.0)] = Field(10000.0, description="Base of the rotary embedding.")
    rope_scaling: RopeScaling = Field(RopeScaling(), description="Scaling of the rotary frequencies (Llama 3.1).")
    qk_norm: bool = Field(False, description="RMSNorm on queries and keys per head (Qwen3).")
    tie_embeddings: bool = Field(False, description="Use the embedding as output head too.")
    sliding_window: Count = Field(0, description="Tokens a query sees back, itself included; 0: the whole context.")
    init_std: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.02, description="Standard deviation of the initial weights.")
    moe: MoESection = Field(MoESection(), description="Mixture of experts.")


class BatchSection(Section):
    """Sequences per optimizer step, and how many at a time."""

    model_config = ConfigDict(populate_by_name=True)

    global_: Positive = Field(16, alias="global", description="Sequences per optimizer step, over all ranks.")
    micro: Positive | Literal["auto"] = Field(
        16,
        description="Most sequences a rank computes at a time; the largest number up to it that divides its share is used, the rest accumulates. "
        "'auto' tries sizes in the first steps and goes on with the fastest that fits into memory.",
    )

    @property
    def first_micro(self) -> int:
        """Most sequences at a time before anything was tried."""
        return 16 if self.micro == "auto" else self.micro


class TrainSection(Section):
    """How long to train."""

    steps: Positive = Field(200, description="Optimizer steps.")
    loss_chunk: Count = Field(
        0, description="Tokens whose logits are held at once in the cross-entropy; 0: as many as keep them under 64 MiB (CPU) or 512 MiB (GPU)."
    )


class OptimSection(Section):
    """Optimizer, learning-rate schedule and clipping."""

    kind: Literal["adamw", "muon"] = Field("adamw", description="AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest.")
    lr: Annotated[float, Field(gt=0.0, le=10.0)] = Field(1e-3, description="Peak learning rate of AdamW.")
    muon_lr: Annotated[float, Field(gt=0.0, le=10.0)] = Field(0.02, description="Peak learning rate of Muon.")
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.9, description="Decay of AdamW's first moment.")
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.95, description="Decay of AdamW's second moment.")
    eps: Annotated[float, Field(gt=0.0)] = Field(1e-8, description="Epsilon of AdamW.")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.95, description="Momentum of Muon (Nesterov).")
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] = Field(0.1, description="Decoupled weight decay of matrices; norms and biases have none.")
    schedule: Literal["cosine", "wsd", "constant"] = Field(
        "cosine", description="After the linear warm-up: cosine to the end, stable then linear decay (WSD), or constant."
    )
    warmup: Count = Field(10, description="Steps of linear warm-up; a shorter run ends within it.")
    decay: Fraction = Field(0.2, description="Share of the steps that WSD spends decaying.")
    min_lr: Fraction = Field(0.1, description="Learning rate at the end, as a share of the peak.")
    clip: Annotated[float, Field(ge=0.0)] = Field(1.0, description="Largest global gradient norm; 0: no clipping.")
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="Decay of an exponential average of the weights that evaluation, samples and export use; 0: none."
    )


class PrecisionSection(Section):
    """Number formats. Master weights, moments and gradient sums are float32 (float64 where that computes)."""

    compute: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        "auto",
        description="Format of activations and matrix products; auto: bfloat16 on CUDA, float32 on the CPU. float64 holds weights and moments too, "
        "to check results against each other.",
    )


class CompileSection(Section):
    """torch.compile of the model and its loss, as one graph for shallow models on a CPU, else (and in a pipeline) block by block."""

    enabled: Literal["auto", "on", "off"] = Field(
        "auto", description="auto: on where it pays (CUDA, or a CPU run long enough to earn back the compile time), after a gradient check."
    )


class LayoutSection(Section):
    """Which axes the ranks form."""

    replicate: Count = Field(0, description="Data-parallel replicas of everything below; 0: as many as the ranks give.")
    pipeline: Positive = Field(1, description="Ranks in a row that each have some of the layers; see the section pipeline.")
    shard: Positive = Field(1, description="Data-parallel ranks that share the burden of weights, gradients and moments (FSDP); see zero.")
    zero: Annotated[int, Field(ge=1, le=3)] = Field(
        3, description="What the shard axis shards (ZeRO): 1 the moments, 2 the gradients too, 3 the weights too, which are gathered block by block."
    )
    context: Positive = Field(1, description="Ranks that share each sequence, in balanced causal halves; for contexts too long for one rank.")
    tensor: Positive = Field(1, description="Ranks that share each matrix (tensor parallelism); keep them inside a node.")
    tensor_topology: Literal["1d", "2d", "2.5d"] = Field(
        "1d", description="Grid of the tensor ranks: '1d' Megatron's rows and columns, '2d' an x×y grid, '2.5d' SUMMA on q×q × depth (Tesseract)."
    )
    tensor_grid: str = Field(
        "", pattern=r"^(\d+([x×]\d+)+)?$", description="The grid's shape, such as '2x4' (x×y) or '2x2x2' (q×q×d); empty: chosen from layout.tensor."
    )
    expert: Positive = Field(1, description="Data-parallel ranks over which the routed experts are spread; tokens travel to them.")
    expert_spare: Count = Field(0, description="Slots on every expert rank beyond its even share, for replicas of the busiest experts.")
    expert_every: Count = Field(0, description="Steps between placing the experts anew by their load, replicas included; 0: never.")
    bucket_mb: Annotated[float, Field(gt=0.0, le=4096.0)] = Field(
        25.0, description="Size of a gradient bucket that is summed over ranks while backward goes on, MiB."
    )
    timeout_s: Annotated[float, Field(ge=1.0, le=86400.0)] = Field(600.0, description="Deadline of every wait between ranks, in seconds.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(0, description="TCP port of the rendezvous that --nproc starts; 0: any free one.")


class PipelineSection(Section):
    """The schedule of a pipeline (layout.pipeline above 1)."""

    schedule: str = Field(
        "auto",
        description="auto: synthesised from the stages' times; or gpipe, 1f1b, interleaved, zb-h1, zb-v, v-half, dualpipe-v; or a .csv file in "
        "torch's format.",
    )
    chunks: Count = Field(0, description="Stages on each rank; 0: the schedule's own, and for auto the best of those the layers allow.")
    memory: Annotated[float, Field(gt=0.0, le=16.0)] = Field(
        1.0, description="Most activations that auto lets a rank hold, as a share of what 1F1B's first rank holds."
    )
    check: Literal["before", "after"] = Field(
        "before",
        description="When the global gradient norm is checked: before the update, for which all ranks wait, or after it, which is taken back exactly "
        "where it should have been clipped.",
    )
    trace: Count = Field(
        0, description="Step whose executed timeline is written to the run's folder, for Perfetto and penstock schedule --from; 0: none."
    )
    drift: Annotated[float, Field(ge=0.0, le=10.0)] = Field(
        0.1, description="Relative change of measured stage times from which auto makes the schedule again, between two steps; 0: never."
    )


class BalanceSection(Section):
    """Work balancing between fast and slow ranks."""

    data: Literal["off", "measured"] = Field(
        "off",
        description="How the sequences of a global batch are shared out over the data-parallel ranks: evenly, or by their measured speed. The update "
        "is the same up to rounding, whatever the shares. For ranks that differ for longer than some steps: other hardware, a busy neighbour.",
    )


class ExchangeSection(Section):
    """How gradients travel between nodes, whose network is slower than that inside a node."""

    topology: str = Field(
        "auto",
        pattern=r"^(auto|flat|measured|[1-9]\d*x[1-9]\d*)$",
        description="Which ranks share a node. auto: those the launcher started together (GROUP_RANK) or whose hosts have one name; measured: those "
        "with a fast link, by a short measurement; '2x4': two nodes of four ranks each; flat: take no notice of nodes.",
    )
    kind: Literal["dense", "topk", "powersgd", "periodic", "auto"] = Field(
        "dense",
        description="What replicas on different nodes send each other. dense: all of the gradient, every step; topk: its largest entries, the others "
        "later (error feedback); powersgd: each matrix's approximation of low rank, the rest later; periodic: no gradients; nodes train apart, and "
        "send the largest of what their weights differ by, every few steps; auto: dense while the network keeps up, else periodic, as often as it "
        "allows.",
    )
    rank: Positive = Field(
        8, description="Rank of powersgd's approximations; matrices for which rank × (rows + columns) is no less than their entries are sent whole."
    )
    every: Positive = Field(1, description="Steps between the meetings of periodic.")
    density: Annotated[float, Field(gt=0.0, le=1.0)] | Literal["auto"] = Field(
        "auto", description="Share of the entries of each matrix that topk and periodic send; auto: 0.05 for topk, 0.1 for periodic."
    )
    values: Literal["float32", "bf16", "fp8", "int8", "int4", "int2"] = Field(
        "int4", description="Number format of what topk and periodic send; what it rounds off is sent later too."
    )
    selection: Literal["sampled", "exact"] = Field(
        "sampled",
        description="How topk and periodic find the largest entries. sampled: those over a threshold that a sample gives, nearly as many as density "
        "says; exact: exactly as many, in up to twice the time.",
    )
    warmup: Count = Field(0, description="Steps in which topk's density falls from 1 to its value.")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="Momentum correction of topk: gradients are summed, decaying so, before the largest are sent, in place of the optimizer's own "
        "momentum (set optim.beta1 to 0 with it); 0: none.",
    )


class SurviveSection(Section):
    """What becomes of a run of several ranks on one host (--nproc) when one of them dies or hangs."""

    enabled: Literal["auto", "on", "off"] = Field(
        "auto", description="Whether the other ranks keep their state and go on; off: the run ends, and says which rank failed; auto: on, on the CPU."
    )
    replace: Literal["cold", "standby", "none"] = Field(
        "cold",
        description="What takes a lost rank's place. cold: a new process (tenths of a second on Linux, else seconds); standby: one that waits "
        "(survive.standby); none: nobody, the layout is made anew for fewer ranks, if it and the batch divide into them (else as cold).",
    )
    standby: Positive = Field(1, description="Processes that wait for survive.replace = 'standby'; each holds torch in memory, some 300 MB.")
    patience_s: Annotated[float, Field(ge=0.0, le=86400.0)] = Field(
        10.0, description="Least time, seconds, that a step takes before a rank is held to hang, and 3 usual steps if that is longer; 0: for ever."
    )
    copies: Count = Field(
        0,
        description="Steps between copies of the state in other ranks' memory, from which a shard without replicas is taken up if its rank is lost: "
        "at most so many steps are taken again. Memory of the host: up to four times the rank's state; time: a copy of it, and sending what "
        "has no replica. 0: none; such a loss goes back to the newest snapshot.",
    )
    compare: Count = Field(0, description="Steps between comparisons of replicas bit for bit, which find silent corruption; 0: never.")
    most: Count = Field(100, description="Recoveries of one start of a run; the next failure ends it.")


class ElasticSection(Section):
    """Whether a run with a supervisor (survive.enabled) looks itself for the number of ranks that pays (`penstock scale` asks for one by hand)."""

    policy: Literal["off", "throughput"] = Field(
        "off", description="throughput: more ranks as long as they bring enough speed, fewer where they do not; the batch stays, and what is learned."
    )
    min: Positive = Field(1, description="Fewest ranks that the policy goes to.")
    max: Count = Field(0, description="Most ranks that the policy goes to; 0: the host's GPUs, or CPU cores where there are none.")
    gain: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="Share of their part that added ranks must have brought to be taken again; 1: with twice the ranks half the time."
    )
    keep: Fraction = Field(0.25, description="Share of their part below which added ranks are given up; less than elastic.gain.")
    cooldown: Annotated[int, Field(ge=10)] = Field(100, description="Steps on a number of ranks before the policy decides; their median time counts.")
    dry_run: bool = Field(False, description="Only say what the policy would do, and why, in the run's history and on the screen.")


class EvalSection(Section):
    """Validation loss and samples while training."""

    every: Count = Field(50, description="Steps between evaluations; the last step is always evaluated; 0: only the last.")
    sequences: Count = Field(0, description="Validation sequences used, evenly spread; 0: all.")
    micro: Count = Field(0, description="Sequences evaluated at a time; 0: as batch.micro.")
    prompt: str = Field("", description="Prompt of the samples; empty: start of a document.")
    sample_tokens: Count = Field(160, description="Tokens of the sample after an evaluation; 0: no samples.")
    temperature: Annotated[float, Field(ge=0.0, le=10.0)] = Field(0.8, description="Temperature of samples; 0: the likeliest token.")
    top_k: Count = Field(50, description="Sample among the k likeliest tokens; 0: all.")


class SnapshotSection(Section):
    """When the state is written to disk."""

    every: Count = Field(100, description="Steps between snapshots; the last step is always written; 0: only the last.")
    keep: Count = Field(2, description="Newest snapshots kept; 0: all.")
    keep_every: Count = Field(0, description="Snapshots of steps divisible by this are kept too; 0: none.")
    keep_hours: Annotated[float, Field(ge=0.0)] = Field(0.0, description="The first snapshot of each so many hours of training is kept too; 0: none.")
    keep_best: Count = Field(0, description="So many snapshots of the lowest validation loss are kept too; taken right after an evaluation.")
    increments: Literal["lossless", "bounded", "off"] = Field(
        "lossless",
        description="How a snapshot is stored: as what changed since the last in full, bit for bit; with a bounded error, in a fraction of the bytes "
        "(the last one of a run is exact); or in full each time.",
    )
    chain: Annotated[int, Field(ge=0, le=32)] = Field(
        8, description="Increments of a snapshot in full, before the next in full. More: fewer bytes, if the state moves slowly."
    )


class Config(Section):
    """The whole configuration of a run."""

    run: RunSection = Field(default_factory=RunSection)
    data: DataSection = Field(default_factory=DataSection)
    model: ModelSection = Field(default_factory=ModelSection)
    batch: BatchSection = Field(default_factory=BatchSection)
    train: TrainSection = Field(default_factory=TrainSection)
    optim: OptimSection = Field(default_factory=OptimSection)
    precision: PrecisionSection = Field(default_factory=PrecisionSection)
    compile: CompileSection = Field(default_factory=CompileSection)
    layout: LayoutSection = Field(default_factory=LayoutSection)
    pipeline: PipelineSection = Field(default_factory=PipelineSection)
    exchange: ExchangeSection = Field(default_factory=ExchangeSection)
    balance: BalanceSection = Field(default_factory=BalanceSection)
    survive: SurviveSection = Field(default_factory=SurviveSection)
    elastic: ElasticSection = Field(default_factory=ElasticSection)
    eval: EvalSection = Field(default_factory=EvalSection)
    snapshot: SnapshotSection = Field(default_factory=SnapshotSection)
    metrics: MetricsSection = Field(default_factory=MetricsSection)
    cost: CostSection = Field(default_factory=CostSection)
    alerts: AlertsSection = Field(default_factory=AlertsSection)

    @model_validator(mode="after")
    def check_pairs(self) -> Config:
        """Refuse combinations that cannot work, naming both fields."""
        for broken, sentence in impossible(self):
            if broken:
                raise ValueError(sentence)
        return self

    def tree(self) -> dict[str, Any]:
        """The configuration as nested plain values, with the names users write (`batch.global`)."""
        return self.model_dump(by_alias=True)

//! Every verb and flag, in one place: help, man pages and completions are made from this.

use crate::{exit::CODES, frames};
use clap::{Args as Group, Parser, Subcommand, ValueEnum, builder::FalseyValueParser};
use paligemma::{
    DType, Isa,
    bench::Learning,
    checkpoint::{Form, Scheme},
    data::playground::{Split, Task},
    detection::Finding,
    eval::Metric,
    generate::{BeamRule, Options, Sampling},
    image::{
        Choice,
        decode::{MAX_PIXELS, MAX_SIDE},
    },
    session::SessionOptions,
    text::{BoxScale, PixelBox},
};
use std::{path::PathBuf, sync::LazyLock};

/// `--version`; `-V` gives its first line alone.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let commit = option_env!("PALIGEMMA_COMMIT").map_or(String::new(), |commit| format!("commit {commit}, "));
    format!("{}\n{commit}{} kernels, no CUDA", env!("CARGO_PKG_VERSION"), Isa::best().name())
});

/// What `--help` says at its end.
static AFTER_HELP: LazyLock<String> = LazyLock::new(|| {
    format!(
        "Examples:\n  \
        paligemma random tiny ./tiny                                      a model to try things with\n  \
        paligemma run google/paligemma-3b-mix-224 cat.jpg 'caption en'    an answer, streamed\n  \
        paligemma detect ./model cat.jpg cat -o found.png                 boxes, printed and drawn\n  \
        paligemma run --help                                              more of a verb\n\n{CODES}"
    )
});

/// PaliGemma: look at a picture and answer.
#[derive(Parser, Debug)]
#[command(
    name = "paligemma",
    version,
    long_version = VERSION.as_str(),
    max_term_width = 100,
    after_help = AFTER_HELP.as_str(),
    propagate_version = true
)]
pub(crate) struct Args {
    /// Print JSON on stdout.
    #[arg(long, global = true, env = "PALIGEMMA_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
    /// Say nothing on stderr but errors.
    #[arg(long, short, global = true, env = "PALIGEMMA_QUIET", value_parser = FalseyValueParser::new())]
    pub(crate) quiet: bool,
    /// Threads to compute with; all cores if not given.
    #[arg(long, global = true, value_name = "N", env = "PALIGEMMA_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Use no network, as with HF_HUB_OFFLINE=1.
    #[arg(long, global = true, env = "PALIGEMMA_OFFLINE", value_parser = FalseyValueParser::new())]
    pub(crate) offline: bool,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Verb {
    /// Answer a prompt about one or more images, streaming the raw text.
    #[command(
        override_usage = "paligemma run [OPTIONS] <MODEL> <IMAGE>... <PROMPT>",
        after_help = "Examples:\n  \
        paligemma run google/paligemma-3b-mix-224 cat.jpg 'caption en'\n  \
        paligemma run ./model left.png right.png 'answer en Is it the same place?' --json\n  \
        cat cat.jpg | paligemma run ./model - 'detect cat'"
    )]
    Run {
        #[command(flatten)]
        model: ModelArg,
        /// Image files (`-` is stdin), then the prompt.
        #[arg(required = true, num_args = 1.., value_names = ["IMAGE", "PROMPT"])]
        images_and_prompt: Vec<String>,
        /// Allow only valid answers of a prompt `detect …` or `segment …`.
        #[arg(long)]
        constrain: bool,
        #[command(flatten)]
        opening: Opening,
        #[command(flatten)]
        choosing: Choosing,
    },
    /// Describe an image: the prompt `caption LANG`.
    #[command(after_help = "Examples:\n  paligemma caption ./model cat.jpg --lang de\n  \
        paligemma caption ./model clip.mp4 --frames 16 --stride 9")]
    Caption(TaskArgs),
    /// Answer a question about an image: the prompt `answer LANG WORDS`.
    #[command(after_help = "Example:\n  paligemma ask ./model cat.jpg Where is the cat?")]
    Ask(TaskArgs),
    /// Read the text in an image: the prompt `ocr`.
    #[command(after_help = "Example:\n  paligemma ocr ./model receipt.png")]
    Ocr(TaskArgs),
    /// Find things: boxes, one a line with its score, as they come. The prompt is `detect THING ; THING`.
    #[command(after_help = FIND_HELP.replace("VERB", "detect"), mut_arg("max_tokens", |arg| arg.default_value(FIND_TOKENS)))]
    Detect(FindArgs),
    /// Outline things: boxes and masks. The prompt is `segment THING ; THING`.
    #[command(after_help = FIND_HELP.replace("VERB", "segment"), mut_arg("max_tokens", |arg| arg.default_value(FIND_TOKENS)))]
    Segment {
        #[command(flatten)]
        find: FindArgs,
        #[command(flatten)]
        masks: MaskArgs,
    },
    /// Answer every line of a JSONL file with the keys `image` and `prefix`.
    #[command(
        after_help = "Each line out is the line in with `answer`, `tokens` and `logprob` (EOS included) added, in place of \
        keys so called, in the same order; and `detections`, where the prefix asks for things or the answer is nothing \
        but objects, as `detect --json` has them, with `codes`, and `mask` if --vqvae is given. Images are looked for beside the JSONL file, then in the current folder; a list of images is one prompt. \
        Started again with the same -o it goes on where it stopped. Bad lines are reported by number and left out; \
        the exit code is then 3.\n\nExample:\n  paligemma predict ./model val.jsonl -o answers.jsonl --batch 4"
    )]
    Predict {
        #[command(flatten)]
        model: ModelArg,
        /// The questions, one JSON object a line.
        data: PathBuf,
        /// Where the answers go; stdout if not given.
        #[arg(long, short)]
        output: Option<PathBuf>,
        /// Prompts that are answered together.
        #[arg(long, default_value_t = 1, env = "PALIGEMMA_BATCH", value_parser = clap::value_parser!(u16).range(1..=256))]
        batch: u16,
        /// Allow only valid answers where the prefix is `detect …` or `segment …`.
        #[arg(long)]
        constrain: bool,
        #[command(flatten)]
        finding: FindingArgs,
        #[command(flatten)]
        vqvae: VqVaeArg,
        #[command(flatten)]
        opening: Opening,
        #[command(flatten)]
        choosing: Choosing,
    },
    /// Turn mask codes into a mask, or a mask into codes, for those who make data sets.
    #[command(after_help = "Examples:\n  \
        paligemma mask encode mask.png --box 10,20,200,150 --vqvae vae-oid.npz\n  \
        paligemma mask decode 5,0,127,9,5,0,127,9,5,0,127,9,5,0,127,9 --vqvae vae-oid.npz -o mask.png")]
    Mask {
        #[command(subcommand)]
        way: MaskWay,
    },
    /// Check, look at and convert data sets: JSONL, tar shards, Parquet, folders.
    #[command(after_help = "Examples:\n  \
        paligemma data lint train.jsonl --model ./model --text-len 128\n  \
        paligemma data preview train.jsonl -n 4\n  \
        paligemma data convert coco instances_val2017.json val.jsonl")]
    Data {
        #[command(subcommand)]
        what: DataVerb,
    },
    /// Draw pictures, and make examples of every task about them: JSONL to train on and to score with.
    #[command(
        after_help = "Writes OUT/SPLIT.jsonl and the pictures in OUT/SPLIT; neither may exist. Each line has `image` (or a \
        list of images), `prefix`, `suffix` (or a list of what may be answered), `task` and `lang`, and `masks`, the true ones as COCO run lengths, where \
        the answer has masks. Line N of a split and a \
        seed is always the same, whatever the count and the side. No example is in two splits; in `compositional` each thing \
        has colours that it has in no other. `refer` and `aerial`, kept for transfers, come only with --tasks. Masks' codes are of \
        the model within the program, unless --vqvae names another.\n\n\
        JSON: `path`, `lines`, `pictures`, and `tasks`: for each its `count`, the most frequent answer (`majority_answer`), how \
        often it is right (`majority`), and how often an answer drawn at random from all of them is (`chance`).\n\n\
        Examples:\n  \
        paligemma playground drawn --split val --count 1000\n  \
        paligemma playground drawn --split test --count 200 --tasks colour,count --size 448"
    )]
    Playground {
        /// The folder to write into.
        out: PathBuf,
        /// Which part.
        #[arg(long, default_value = "train")]
        split: SplitArg,
        /// How many examples.
        #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
        count: u32,
        /// Another seed gives other examples.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Width and height of the pictures.
        #[arg(long, default_value_t = 224, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(28..=2048))]
        size: u16,
        /// Only these tasks, equally often: caption, ocr, read, colour, which, count, presence, where, relation, compare,
        /// chart, pair, frames, question, detect, segment, grounded, refer, aerial.
        #[arg(long, value_name = "TASK,TASK", value_delimiter = ',', value_parser = playground_task)]
        tasks: Vec<Task>,
        #[command(flatten)]
        vqvae: VqVaeArg,
    },
    /// Score answers that `predict` wrote beside what should have been answered.
    #[command(
        after_help = "Each line of PREDICTIONS has `answer` and `suffix`, or a list of them. Metrics: exact, the part of the \
        answers that are a suffix, letter for letter; cider, CIDEr-D of captions as pycocoevalcap has it (papers print it \
        times 100); ap, COCO's average precision of boxes, ranked by `detections` if the lines have them; miou, mean \
        intersection over union, of masks where the line has `masks` or the suffix has codes (those of the model within the program, unless --vqvae names \
        another), else of boxes. An \
        answer that cannot be read scores 0. The interval is the middle 95 % of a bootstrap over the lines. Where lines have \
        `task`, each task has figures of its own.\n\n\
        JSON: `metric`, `count`, `seed`, `figures` (by name, each with `value`, `low`, `high`), and `tasks`, for each its \
        `count` and `figures`.\n\n\
        Examples:\n  \
        paligemma score answers.jsonl --metric exact\n  \
        paligemma score found.jsonl --metric ap --json"
    )]
    Score {
        /// The predictions, one JSON object a line.
        predictions: PathBuf,
        /// How answers are compared.
        #[arg(long)]
        metric: MetricArg,
        /// Of the bootstrap.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        #[command(flatten)]
        vqvae: VqVaeArg,
    },
    /// Train a model by a recipe; started again with the same run folder it goes on.
    #[command(
        after_help = "Ctrl-C once saves the run's state and stops; twice stops at once. The run folder has recipe.toml, \
        metrics.jsonl (step, loss, lr, grad_norm, examples_per_s, tokens_per_s, peak_rss_bytes) and state/. Changes are \
        TOML (lr=1e-5, freeze='[\"img/.*\"]') or else text; `paligemma recipes ls --keys` lists the keys.\n\n\
        JSON: `run`, `step`, `total`, `stopped`, `loss`, `eval_loss`, `eval_exact`, `eval_miou`, \
        `eval_image_to_text`, `eval_text_to_image`; with --dry-run `examples`, `groups`, \
        `frozen_parameters`, `memory`, `memory_total`, `memory_available`, `steps`, `step_s`; with --export `path`, `step`.\n\n\
        Examples:\n  \
        paligemma train transfer model.init=pt_224 data.train.files=train.jsonl --dry-run\n  \
        paligemma train my.toml lr=3e-6 out=runs/lower\n  \
        paligemma train runs/lower                          go on\n  \
        paligemma train runs/lower --export ./model         the newest state as a checkpoint"
    )]
    Train(TrainArgs),
    /// List, show and copy the recipes that come with the program.
    #[command(after_help = "Examples:\n  paligemma recipes ls\n  paligemma recipes copy transfer my.toml")]
    Recipes {
        #[command(subcommand)]
        what: RecipesVerb,
    },
    /// Draw the curves of a run: loss and learning rate, as PNG or SVG.
    #[command(after_help = "JSON: `path`, `steps`.\n\nExample:\n  paligemma plot runs/mine -o curves.svg")]
    Plot {
        /// The run folder.
        run: PathBuf,
        /// What to write, by its ending .png or .svg; RUN/curves.png if not given.
        #[arg(long, short, value_name = "CURVES.png")]
        output: Option<PathBuf>,
    },
    /// Show a model's configuration, tensors, types and the memory it needs.
    #[command(after_help = "Example:\n  paligemma show ./pt_224.npz")]
    Show {
        #[command(flatten)]
        model: ModelArg,
        /// List every tensor.
        #[arg(long)]
        tensors: bool,
    },
    /// Convert a checkpoint: OUT ending in .npz is big_vision's format, anything else a Hugging Face folder.
    #[command(after_help = "Examples:\n  paligemma convert pt_224.npz ./paligemma-3b-pt-224\n  \
        paligemma convert ./model model.bf16.npz --dtype bf16\n  \
        paligemma convert ./model ./model-int8 --dtype int8\n  \
        paligemma convert ./model-224 ./start-448 --image-size 448")]
    Convert {
        /// A folder, a file, a big_vision name or a Hub id.
        #[arg(value_name = "IN")]
        input: String,
        /// The npz or the folder to write.
        out: PathBuf,
        /// The type of all tensors, or how the matrices are quantised (a folder only); each keeps its own if not given.
        #[arg(long)]
        dtype: Option<TypeOrScheme>,
        /// Make it a model for pictures of this side: its position embeddings are zoomed, as Stage 2 begins (a folder only).
        #[arg(long, value_name = "PIXELS")]
        image_size: Option<usize>,
    },
    /// Join an image encoder and a language model to the start of a PaliGemma: Stage 1 begins with it.
    #[command(
        override_usage = "paligemma assemble [OPTIONS] --vision <SIGLIP> --language <GEMMA> <OUT>",
        after_help = "SIGLIP and GEMMA are folders in Hugging Face's format (model_type siglip or siglip_vision_model; gemma or \
        gemma2), npz files of big_vision, or PaliGemmas, of which the part is taken. The projector is zero; the table gets \
        rows drawn from N(0, 0.02) for <loc0000> to <seg127>; position embeddings stay.\n\n\
        JSON: `path`, `parameters`, `bytes`, `new_rows`, `image_token_index`, `dtype`, `seed`.\n\n\
        Example:\n  paligemma assemble --vision google/siglip-so400m-patch14-224 --language google/gemma-2b ./start"
    )]
    Assemble {
        /// The image encoder.
        #[arg(long, value_name = "SIGLIP")]
        vision: String,
        /// The language model.
        #[arg(long, value_name = "GEMMA")]
        language: String,
        /// The folder to write.
        out: PathBuf,
        /// A tokenizer.json or tokenizer.model in place of the language model's.
        #[arg(long, value_name = "FILE")]
        tokenizer: Option<PathBuf>,
        /// The type of all tensors; training wants f32.
        #[arg(long, default_value = "f32")]
        dtype: Type,
        /// Of the new rows.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Compare two models on the same inputs: what a quantisation or another type costs.
    #[command(
        after_help = "MODEL_A answers a few prompts about each picture; both then read the same tokens. Told are how often the \
        likeliest next token is the same, the divergence KL(A||B) of the two distributions in nats, the difference of the image \
        features and of every layer's output, as root mean square over that of A.\n\n\
        Example:\n  paligemma drift ./model ./model-int8 --images ./pictures --json"
    )]
    Drift {
        /// A folder, a file, a big_vision name or a Hub id: the model that is right.
        model_a: String,
        /// The model that is compared with it.
        model_b: String,
        /// A folder of pictures; a few drawn ones if not given.
        #[arg(long, value_name = "DIR")]
        images: Option<PathBuf>,
        /// The most tokens of an answer of MODEL_A.
        #[arg(long, short = 'n', default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
        max_tokens: u16,
    },
    /// Turn text into token ids; no BOS is added. Only the tokenizer is read.
    #[command(after_help = "Example:\n  paligemma tokenize ./model 'caption en' --json")]
    Tokenize {
        /// A model, or a tokenizer file.
        model: String,
        /// The text; `-` reads it from stdin.
        #[arg(allow_hyphen_values = true)]
        text: String,
        /// A tokenizer file in place of the model's.
        #[arg(long, value_name = "FILE")]
        tokenizer: Option<PathBuf>,
    },
    /// Recompute what a golden holds and name the first tensor that departs.
    #[command(
        after_help = "GOLDEN holds one example in Hugging Face's layout: pixel_values, input_ids, token_type_ids, \
        attention_mask, labels; and what came out: image_features, logits, loss. The exit code is 1 when one departs.\n\n\
        Example:\n  paligemma verify ./model golden.safetensors --json"
    )]
    Verify {
        #[command(flatten)]
        model: ModelArg,
        /// A safetensors file.
        golden: PathBuf,
        /// The type to compute with; if not given f32, and a quantised model as it is stored.
        #[arg(long)]
        dtype: Option<Type>,
        /// Use the config's sliding window, as transformers does.
        #[arg(long)]
        sliding_window: bool,
    },
    /// Write a checkpoint of random weights, with a stand-in tokenizer, for measuring without the real ones.
    #[command(
        after_help = "CONFIG is tiny, 2-tiny, nano-112, nano-224, 3b-224, 3b-448, 3b-896, 2-3b-224 … 2-28b-896.\n\n\
        Example:\n  paligemma random tiny ./tiny"
    )]
    Random {
        /// A published size, or tiny, 2-tiny, nano-112, nano-224.
        config: String,
        /// The folder to write.
        out: PathBuf,
        /// The type of all tensors, or how the matrices are quantised.
        #[arg(long, default_value = "bf16")]
        dtype: TypeOrScheme,
        /// Equal seeds give equal weights.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Measure a model's speed, and the machine's limits beside it.
    #[command(
        override_usage = "paligemma bench [OPTIONS] <MODEL>\n       paligemma bench [OPTIONS] --random <CONFIG>",
        after_help = "Pictures and prompts are made up. A first run does not count. Times are those of the whole batch; \
        --json gives each with its median, min and max:\n  \
        image_encode_s   pixels to projected tokens\n  \
        prefill_s        the language model over image and prompt, one row of logits each\n  \
        ttft_s           the two together\n  \
        decode_token_s   a step, which gives every answer a token\n\
        and what the machine reads and multiplies at most meanwhile, with the fraction of it that is reached \
        (medians of each run's own). With --train: train_step_s, and train_of_peak of the machine's multiplications.\n\n\
        Examples:\n  paligemma bench --random 3b-224 --table\n  \
        paligemma bench --random 3b-224 --train lora --new-tokens 64 --repeat 3\n  \
        paligemma bench ./model --batch 4 --json"
    )]
    Bench {
        /// A folder, a file, a big_vision name (pt_224) or a Hub id (google/paligemma-3b-mix-224, @revision).
        #[arg(required_unless_present = "random", conflicts_with = "random")]
        model: Option<String>,
        /// Random weights of a published size (3b-224 … 2-28b-896, tiny, 2-tiny), made in memory.
        #[arg(long, value_name = "CONFIG")]
        random: Option<String>,
        /// The weights' type; auto leaves them as they are stored, and makes random ones bf16; int8 and int4 are for random
        /// ones.
        #[arg(long, default_value = "auto", env = "PALIGEMMA_DTYPE")]
        dtype: TypeSchemeOrAuto,
        /// Tokens of text behind each picture.
        #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=8192))]
        prompt_tokens: u16,
        /// Tokens of each answer; the first comes with the prefill.
        #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(2..=8192))]
        new_tokens: u16,
        /// Prompts that are answered together.
        #[arg(long, value_name = "N", default_value_t = 1, env = "PALIGEMMA_BATCH", value_parser = clap::value_parser!(u16).range(1..=256))]
        batch: u16,
        /// Runs that count.
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
        repeat: u16,
        /// Run once for each line on stdin and print each run's JSON: to take turns with another program.
        #[arg(long, requires = "json", conflicts_with = "repeat")]
        turns: bool,
        /// Measure a step of training in place of an answer: of adapters (rank 8, every linear layer of the decoder), or of the
        /// whole decoder (SGD, changed in place). --new-tokens are learned; the first step does not count.
        #[arg(long, value_name = "WHAT", conflicts_with_all = ["turns", "table", "batch"])]
        train: Option<LearningArg>,
        /// Print a Markdown table.
        #[arg(long, conflicts_with = "json")]
        table: bool,
    },
    /// Download a model into the Hugging Face cache; an interrupted download goes on.
    #[command(after_help = "Example:\n  paligemma pull google/paligemma2-3b-mix-224")]
    Pull {
        /// A Hub id, `org/name` or `org/name@revision`.
        id: String,
    },
    /// List the models in the Hugging Face cache.
    #[command(after_help = "Example:\n  paligemma ls --json")]
    Ls,
    /// Remove a model from the Hugging Face cache.
    #[command(after_help = "Example:\n  paligemma rm google/paligemma-3b-pt-224 -y")]
    Rm {
        /// A Hub id, `org/name` or `org/name@revision`.
        id: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Check this machine: processor, memory, disk, cache, token.
    #[command(after_help = "Example:\n  paligemma doctor")]
    Doctor,
    /// Print a shell's completion script.
    #[command(after_help = "Example:\n  paligemma completions bash > /etc/bash_completion.d/paligemma")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the man page of the program, or of one verb.
    #[command(after_help = "Example:\n  paligemma man run | man -l -")]
    Man {
        /// A verb.
        verb: Option<String>,
    },
}

#[derive(Group, Debug)]
pub(crate) struct TrainArgs {
    /// A recipe's file, a run's folder, or a name of `paligemma recipes ls`.
    pub(crate) recipe: String,
    /// Changes to the recipe.
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) changes: Vec<String>,
    /// Show three examples, what learns, the memory and the time; train nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Stop behind this step of the run; the schedule stays that of the whole run.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps: Option<u64>,
    /// Write the newest saved state as a checkpoint, or as an adapter's folder, and train nothing.
    #[arg(long, value_name = "OUT", conflicts_with_all = ["dry_run", "steps"])]
    pub(crate) export: Option<PathBuf>,
    /// With --export: the type of the tensors; that of the model it began with if not given.
    #[arg(long, requires = "export")]
    pub(crate) dtype: Option<Type>,
    /// With --export, of adapters: the model with them merged in.
    #[arg(long, requires = "export")]
    pub(crate) merge: bool,
}

/// What to do with recipes.
#[derive(Subcommand, Debug)]
pub(crate) enum RecipesVerb {
    /// List the recipes, or the keys of a recipe.
    #[command(after_help = "Example:\n  paligemma recipes ls --keys")]
    Ls {
        /// List the keys that a recipe may have.
        #[arg(long)]
        keys: bool,
    },
    /// Print a recipe.
    #[command(after_help = "Example:\n  paligemma recipes show lora")]
    Show {
        /// Its name.
        name: String,
    },
    /// Write a recipe to a file, to be changed.
    #[command(after_help = "Example:\n  paligemma recipes copy transfer my.toml")]
    Copy {
        /// Its name.
        name: String,
        /// The file, which must not exist.
        out: PathBuf,
    },
}

/// The most tokens of an answer of `detect` and `segment`: many objects, of up to some thirty tokens each.
const FIND_TOKENS: &str = "512";
/// What to do with data.
#[derive(Subcommand, Debug)]
pub(crate) enum DataVerb {
    /// Find what is wrong with examples; each problem is a line `FILE:LINE: CHECK: WHAT`.
    #[command(
        after_help = "Checks: example (it cannot be read), image (missing or broken), empty-suffix, text (control \
        tokens, line breaks or white space around it), box (out of range, inverted, no area, no object), answer (not what \
        the prompt asks for), too-long (cut off; with --model or --tokenizer). The exit code is 3 when there is a problem.\n\n\
        JSON: `examples`, `problems` with `place`, `check` and `what`, `counts` of each check.\n\n\
        Example:\n  paligemma data lint train.jsonl --model ./model --text-len 128"
    )]
    Lint {
        #[command(flatten)]
        data: DataArgs,
        /// The model whose tokenizer counts the tokens.
        #[arg(long)]
        model: Option<String>,
        /// A tokenizer file in place of a model's.
        #[arg(long, value_name = "FILE", conflicts_with = "model")]
        tokenizer: Option<PathBuf>,
        /// The most tokens of a text: BOS, prefix, line break and suffix.
        #[arg(long, value_name = "N", default_value_t = 128)]
        text_len: usize,
        /// Do not decode pictures; only look whether they are there.
        #[arg(long)]
        no_images: bool,
    },
    /// Show examples: texts on stdout and, with -o, pictures with their boxes and masks on a contact sheet.
    #[command(
        after_help = "Boxes and masks are those of the suffix, or of the prefix of a grounded caption; masks need \
        --vqvae. SHEET must not exist.\n\n\
        JSON: `examples`, each with `place`, `images` (sizes), `prefix`, `suffix`, `suffixes` (how many there are) and \
        `objects` (label, box in pixels, whether it has a mask); `bad`, places of examples that cannot be read; `sheet`.\n\n\
        Example:\n  paligemma data preview train.jsonl -n 12 --seed 0 -o sheet.png"
    )]
    Preview {
        #[command(flatten)]
        data: DataArgs,
        /// How many examples.
        #[arg(long, short, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=1000))]
        number: u16,
        /// Draw them at random, as training with this seed does; the first ones if not given.
        #[arg(long)]
        seed: Option<u64>,
        /// The contact sheet to write.
        #[arg(long, short, value_name = "SHEET.png")]
        output: Option<PathBuf>,
        /// Pictures in a row of the sheet.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=20))]
        columns: u16,
        #[command(flatten)]
        vqvae: VqVaeArg,
    },
    /// Train a tokenizer on prefixes and suffixes: SentencePiece BPE with Gemma's options, `<loc…>` and `<seg…>` behind.
    #[command(
        after_help = "OUT is a tokenizer.model and must not exist. Its first pieces are <pad>, <eos>, <bos>, <unk>, <mask>, the \
        line break and the 256 bytes.\n\n\
        JSON: `path`, `pieces` (without <loc…> and <seg…>), `examples`, `texts`.\n\n\
        Example:\n  paligemma data tokenizer train.jsonl --pieces 4000 -o tokenizer.model"
    )]
    Tokenizer {
        #[command(flatten)]
        data: DataArgs,
        /// The tokenizer.model to write.
        #[arg(long, short, value_name = "OUT")]
        output: PathBuf,
        /// The most pieces, without `<loc…>` and `<seg…>`.
        #[arg(long, value_name = "N")]
        pieces: usize,
        /// How many examples are read, from the first on; all if not given.
        #[arg(long, value_name = "N")]
        examples: Option<usize>,
    },
    /// Make JSONL of other programs' boxes and masks, to be used with the folder of the pictures.
    #[command(
        after_help = "IN is, for coco and lvis, the JSON of the annotations; for yolo, the folder of the label files \
        (--images and --names are needed); for voc, the folder of the XML files, or one; for masks, a folder with a folder of \
        PNGs for each label: MASKS/cat/0007.png is a cat on IMAGES/0007.jpg, MASKS/cat/0007.2.png a second one.\n\n\
        Each line has `image`, as the annotations name it, `prefix`, as `detect cat ; dog`, and `suffix`, as \
        `<loc0100><loc0200><loc0300><loc0400> cat ; …` (y_min, x_min, y_max, x_max in 1/1023 of the picture; for \
        --task segment with 16 `<seg…>`). Crowds and boxes without area are left out and counted. OUT must not exist.\n\n\
        JSON: `path`, `lines`, `objects`, `pictures_without_objects`, `crowds`, `no_area`.\n\n\
        Examples:\n  \
        paligemma data convert coco instances_val2017.json val.jsonl\n  \
        paligemma data convert coco instances_val2017.json val.jsonl --task segment --vqvae vae-oid.npz\n  \
        paligemma data convert yolo labels/train train.jsonl --images images/train --names data.yaml"
    )]
    Convert {
        /// Whose annotations.
        from: Annotations,
        /// The annotations.
        #[arg(value_name = "IN")]
        input: PathBuf,
        /// The JSONL to write.
        out: PathBuf,
        /// What the examples ask for; masks give masks, the others boxes, if not given.
        #[arg(long)]
        task: Option<TaskArg>,
        /// Whether a line asks for all things on a picture, or for one.
        #[arg(long, default_value = "picture")]
        group: GroupArg,
        /// The folder of the pictures (yolo, masks).
        #[arg(long, value_name = "FOLDER")]
        images: Option<PathBuf>,
        /// The names of the classes: a data.yaml, or a text file of a name a line (yolo).
        #[arg(long, value_name = "FILE")]
        names: Option<PathBuf>,
        /// Write `_` in labels as a space.
        #[arg(long)]
        spaces: bool,
        #[command(flatten)]
        vqvae: VqVaeArg,
    },
}

/// Examples and how to read them.
#[derive(Group, Debug)]
pub(crate) struct DataArgs {
    /// JSONL, tar or Parquet files, or folders; `*` in a file's name stands for anything.
    #[arg(required = true)]
    pub(crate) data: Vec<PathBuf>,
    /// Where the pictures are that the data name by a path; beside the data if not given.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) image_dir: Option<PathBuf>,
    /// The field of the pictures; in tars and folders an ending of files, or all pictures.
    #[arg(long, value_name = "FIELD", default_value = "image")]
    pub(crate) image: String,
    /// The prefix, with fields in braces: 'answer en {question}'.
    #[arg(long, value_name = "TEMPLATE", default_value = "{prefix}")]
    pub(crate) prefix: String,
    /// The suffix, with fields in braces; a list gives several.
    #[arg(long, value_name = "TEMPLATE", default_value = "{suffix}")]
    pub(crate) suffix: String,
}

/// How answers are compared.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetricArg {
    Exact,
    Cider,
    Ap,
    Miou,
}

impl From<MetricArg> for Metric {
    fn from(metric: MetricArg) -> Metric {
        match metric {
            MetricArg::Exact => Metric::Exact,
            MetricArg::Cider => Metric::Cider,
            MetricArg::Ap => Metric::Ap,
            MetricArg::Miou => Metric::Miou,
        }
    }
}

/// A part of the playground.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SplitArg {
    Train,
    Val,
    Test,
    Compositional,
}

impl From<SplitArg> for Split {
    fn from(split: SplitArg) -> Split {
        match split {
            SplitArg::Train => Split::Train,
            SplitArg::Val => Split::Val,
            SplitArg::Test => Split::Test,
            SplitArg::Compositional => Split::Compositional,
        }
    }
}

fn playground_task(name: &str) -> Result<Task, String> {
    Task::of(name).ok_or_else(|| {
        let names: Vec<&str> = Task::ALL.iter().map(|task| task.name()).collect();
        format!("there is no such task; there are {}", names.join(", "))
    })
}

/// Whose annotations.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Annotations {
    Coco,
    Lvis,
    Yolo,
    Voc,
    Masks,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskArg {
    Detect,
    Segment,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupArg {
    Picture,
    Thing,
}

/// What `detect` and `segment` say at the end of their help.
const FIND_HELP: &str = "Each line is the score, the box x0,y0,x1,y1 in pixels, and the label, with tabs between; the \
    image's name stands first where there are several. With --json one object an image: `detections`, each with `label`, \
    `box`, `score` and, of segment, `mask`; `malformed`, what was no object; and the keys of `run --json`. The score is \
    the model's probability that there is an object, that it is here, and that it is called so.\n\nExamples:\n  \
    paligemma VERB ./model cat.jpg cat 'coffee cup' -o found.png\n  \
    paligemma VERB ./model 'shots/*.jpg' cat --json --threshold 0.3";

#[derive(Group, Debug)]
pub(crate) struct FindArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// An image file, a folder of them, a quoted pattern ('shots/*.jpg'), or `-` for stdin.
    pub(crate) image: String,
    /// What to find; `;` separates things too.
    #[arg(value_name = "THING")]
    pub(crate) things: Vec<String>,
    /// Draw what was found on the image, as PNG; a folder for several images.
    #[arg(long, short, value_name = "PICTURE.png")]
    pub(crate) output: Option<PathBuf>,
    /// Let the model say anything, not only valid answers about the things asked for.
    #[arg(long, env = "PALIGEMMA_FREE", value_parser = FalseyValueParser::new())]
    pub(crate) free: bool,
    /// Allow only valid answers: the default here.
    #[arg(long, conflicts_with = "free")]
    constrain: bool,
    #[command(flatten)]
    pub(crate) finding: FindingArgs,
    /// Taken as the other tasks take it, and without effect: the prompts of finding name no language.
    #[arg(long, default_value = "en", env = "PALIGEMMA_LANG")]
    lang: String,
    #[command(flatten)]
    pub(crate) opening: Opening,
    #[command(flatten)]
    pub(crate) choosing: Choosing,
}

/// What becomes of the objects of an answer.
#[derive(Group, Debug)]
pub(crate) struct FindingArgs {
    /// Leave out objects of a lower score.
    #[arg(
        long,
        value_name = "P",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        env = "PALIGEMMA_THRESHOLD"
    )]
    threshold: f32,
    /// Of two of one label that overlap more than this, leave out the one of the lower score.
    #[arg(long, value_name = "IOU", allow_negative_numbers = true, env = "PALIGEMMA_NMS")]
    nms: Option<f32>,
    /// Take the mean of the locations around each chosen one, which is finer than a bin.
    #[arg(long, env = "PALIGEMMA_EXPECTED", value_parser = FalseyValueParser::new())]
    expected: bool,
    /// What a bin is divided by: 1023 as big_vision does, or 1024 as many demos do.
    #[arg(long, default_value = "1023", env = "PALIGEMMA_BOX_SCALE")]
    box_scale: BoxScaleArg,
}

impl FindingArgs {
    pub(crate) fn finding(&self) -> Finding {
        let scale = match self.box_scale {
            BoxScaleArg::Reference => BoxScale::Reference,
            BoxScaleArg::Demos => BoxScale::Demos,
        };
        Finding { scale, expected: self.expected, threshold: self.threshold, nms: self.nms }
    }
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum BoxScaleArg {
    #[value(name = "1023")]
    Reference,
    #[value(name = "1024")]
    Demos,
}

#[derive(Group, Debug)]
pub(crate) struct MaskArgs {
    #[command(flatten)]
    pub(crate) vqvae: VqVaeArg,
    /// Write each mask into this folder as PNG, white on black, as large as the image.
    #[arg(long, value_name = "DIR")]
    pub(crate) masks: Option<PathBuf>,
    /// What JSON has of a mask: COCO's compressed run lengths, polygons, or a PNG in base64.
    #[arg(long, default_value = "rle", env = "PALIGEMMA_MASK_FORMAT")]
    pub(crate) mask_format: MaskFormat,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
pub(crate) enum MaskFormat {
    Rle,
    Polygons,
    Png,
}

/// Which way between masks and codes.
#[derive(Subcommand, Debug)]
pub(crate) enum MaskWay {
    /// Turn sixteen codes into a mask: printed, or written as PNG with -o.
    #[command(
        after_help = "JSON: `codes`; `values`, the decoder's 64 rows of 64 numbers, mask where above 0; `rle`, \
        the mask as COCO's run lengths.\n\nExample:\n  \
        paligemma mask decode 5,0,127,9,5,0,127,9,5,0,127,9,5,0,127,9 --box 10,20,200,150 --size 640x480 -o mask.png"
    )]
    Decode {
        /// Sixteen numbers from 0 to 127 with commas between them, or the text <seg005><seg000>…
        #[arg(value_name = "CODE,…")]
        codes: String,
        #[command(flatten)]
        vqvae: VqVaeArg,
        /// Where on a picture the mask belongs, in pixels; without it the mask is 64x64.
        #[arg(long = "box", value_name = "X0,Y0,X1,Y1", value_parser = pixel_box, requires = "size", allow_hyphen_values = true)]
        pixels: Option<PixelBox>,
        /// The size of that picture.
        #[arg(long, value_name = "WxH", value_parser = size, requires = "pixels")]
        size: Option<Size>,
        /// The PNG to write, white on black.
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
    /// Turn a mask into sixteen codes, printed as <seg…> text, after the <loc…> of its box if one is given.
    #[command(after_help = "JSON: `codes`, and the `text`.\n\nExample:\n  \
        paligemma mask encode mask.png --box 10,20,200,150 --vqvae vae-oid.npz")]
    Encode {
        /// A grey picture, white where the object is.
        mask: PathBuf,
        #[command(flatten)]
        vqvae: VqVaeArg,
        /// The object's box in pixels; the whole picture if not given.
        #[arg(long = "box", value_name = "X0,Y0,X1,Y1", value_parser = pixel_box, allow_hyphen_values = true)]
        pixels: Option<PixelBox>,
    },
}

/// Which model of masks.
#[derive(Group, Debug)]
pub(crate) struct VqVaeArg {
    /// The masks' model: Google's vae-oid.npz for Google's checkpoints, or a safetensors of such tensors; if not given, the
    /// program's own, whose codes are others.
    #[arg(long, value_name = "FILE", env = "PALIGEMMA_VQVAE")]
    pub(crate) vqvae: Option<PathBuf>,
}

/// The size of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) width: usize,
    pub(crate) height: usize,
}

fn size(text: &str) -> Result<Size, String> {
    let sides = text.split_once(['x', '×']).and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    let Some((width, height)) = sides else { return Err("a size is like 640x480".into()) };
    if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
        return Err(format!("each side is from 1 to {MAX_SIDE}"));
    }
    if (width * height) as u64 > MAX_PIXELS {
        return Err(format!("it has over {MAX_PIXELS} pixels"));
    }
    Ok(Size { width, height })
}

fn pixel_box(text: &str) -> Result<PixelBox, String> {
    let numbers: Option<Vec<f64>> = text.split(',').map(|n| n.trim().parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[x0, y0, x1, y1]) if x0 < x1 && y0 < y1 => Ok([x0, y0, x1, y1]),
        _ => Err("a box is X0,Y0,X1,Y1 with X0 below X1 and Y0 below Y1".into()),
    }
}

#[derive(Group, Debug)]
pub(crate) struct ModelArg {
    /// A folder, a file, a big_vision name (pt_224) or a Hub id (google/paligemma-3b-mix-224, @revision).
    pub(crate) model: String,
}

#[derive(Group, Debug)]
pub(crate) struct TaskArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// An image file, `-` for stdin, a folder of frames, or a video, which ffmpeg reads.
    pub(crate) image: String,
    /// The question.
    pub(crate) words: Vec<String>,
    /// Frames of a folder or a video that are looked at.
    #[arg(long, default_value_t = 16, value_name = "N", env = "PALIGEMMA_FRAMES", value_parser = clap::value_parser!(u16).range(1..=64))]
    frames: u16,
    /// Take one frame of so many, from the first on: the paper's tasks have 7 (VATEX) to 70 (ActivityNet).
    #[arg(long, default_value_t = 9, value_name = "N", env = "PALIGEMMA_STRIDE", value_parser = clap::value_parser!(u32).range(1..))]
    stride: u32,
    /// The language of the answer.
    #[arg(long, default_value = "en", env = "PALIGEMMA_LANG")]
    pub(crate) lang: String,
    #[command(flatten)]
    pub(crate) opening: Opening,
    #[command(flatten)]
    pub(crate) choosing: Choosing,
}

impl TaskArgs {
    pub(crate) fn sampling(&self) -> frames::Sampling {
        frames::Sampling { frames: self.frames.into(), stride: self.stride as usize }
    }
}

/// How a model is opened.
#[derive(Group, Debug)]
pub(crate) struct Opening {
    /// The weights' type; auto leaves them as they are stored, another makes plain numbers of quantised ones.
    #[arg(long, default_value = "auto", env = "PALIGEMMA_DTYPE")]
    dtype: TypeOrAuto,
    /// How pictures become pixels: as big_vision does, as transformers does, or as the checkpoint's format says.
    #[arg(long, default_value = "auto", env = "PALIGEMMA_PREPROCESS")]
    preprocess: PreprocessArg,
    /// Resize without antialiasing (reference preprocessing only).
    #[arg(long, env = "PALIGEMMA_NO_ANTIALIAS", value_parser = FalseyValueParser::new())]
    no_antialias: bool,
    /// A tokenizer file in place of the one beside the model.
    #[arg(long, value_name = "FILE", env = "PALIGEMMA_TOKENIZER")]
    tokenizer: Option<PathBuf>,
    /// An adapter that goes with the model: a folder as peft and `train --export` write it.
    #[arg(long, value_name = "DIR", env = "PALIGEMMA_ADAPTER")]
    adapter: Option<PathBuf>,
    /// Use the config's sliding window, as transformers does; it matters beyond 4096 tokens.
    #[arg(long, env = "PALIGEMMA_SLIDING_WINDOW", value_parser = FalseyValueParser::new())]
    sliding_window: bool,
}

impl Opening {
    pub(crate) fn options(&self, images: usize, batch: usize, choosing: &Choosing) -> SessionOptions {
        SessionOptions {
            dtype: self.dtype.into(),
            preprocess: self.preprocess.into(),
            antialias: !self.no_antialias,
            tokenizer: self.tokenizer.clone(),
            adapter: self.adapter.clone(),
            sliding_window: self.sliding_window,
            images,
            batch: batch.saturating_mul(choosing.beams),
            text_tokens: choosing.max_tokens.saturating_add(128),
        }
    }
}

/// How an answer is chosen.
#[derive(Group, Debug)]
pub(crate) struct Choosing {
    /// The most tokens of an answer.
    #[arg(long, short = 'n', default_value_t = 128, env = "PALIGEMMA_MAX_TOKENS")]
    max_tokens: usize,
    /// 0 is greedy; above, tokens are drawn at random.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, env = "PALIGEMMA_TEMPERATURE")]
    temperature: f32,
    /// Draw among the K likeliest only.
    #[arg(long, value_name = "K", env = "PALIGEMMA_TOP_K")]
    top_k: Option<usize>,
    /// Draw among the likeliest that together reach probability P.
    #[arg(long, value_name = "P", allow_negative_numbers = true, env = "PALIGEMMA_TOP_P")]
    top_p: Option<f32>,
    /// Equal seeds give equal answers.
    #[arg(long, default_value_t = 0, env = "PALIGEMMA_SEED")]
    seed: u64,
    /// Beam search with N beams.
    #[arg(long, default_value_t = 1, value_name = "N", env = "PALIGEMMA_BEAMS")]
    beams: usize,
    /// Whose beam search: transformers' or big_vision's (reference).
    #[arg(long, default_value = "transformers", env = "PALIGEMMA_BEAM_RULE")]
    beam_rule: BeamRuleArg,
    /// End the answer before this text; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
}

impl Choosing {
    pub(crate) fn options(&self) -> paligemma::Result<Options> {
        if self.temperature == 0.0 && (self.top_k.is_some() || self.top_p.is_some()) {
            return Err(paligemma::Error::usage(
                "--top-k and --top-p choose among random draws, and --temperature is 0",
            )
            .hint("add --temperature 1"));
        }
        let sampling = if self.temperature == 0.0 {
            Sampling::Greedy
        } else {
            Sampling::Random {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                seed: self.seed,
            }
        };
        let beam_rule = match self.beam_rule {
            BeamRuleArg::Transformers => BeamRule::Transformers,
            BeamRuleArg::Reference => BeamRule::Reference,
        };
        let options = Options { max_tokens: self.max_tokens, sampling, beams: self.beams, beam_rule };
        options.check()?;
        Ok(options)
    }
}

#[derive(ValueEnum, Clone, Copy, Debug)]
pub(crate) enum Type {
    F32,
    Bf16,
    F16,
}

impl From<Type> for DType {
    fn from(dtype: Type) -> DType {
        match dtype {
            Type::F32 => DType::F32,
            Type::Bf16 => DType::BF16,
            Type::F16 => DType::F16,
        }
    }
}

#[derive(ValueEnum, Clone, Copy, Debug)]
pub(crate) enum TypeOrScheme {
    F32,
    Bf16,
    F16,
    Int8,
    Int4,
}

impl From<TypeOrScheme> for Form {
    fn from(form: TypeOrScheme) -> Form {
        match form {
            TypeOrScheme::F32 => DType::F32.into(),
            TypeOrScheme::Bf16 => DType::BF16.into(),
            TypeOrScheme::F16 => DType::F16.into(),
            TypeOrScheme::Int8 => Scheme::Int8.into(),
            TypeOrScheme::Int4 => Scheme::Int4.into(),
        }
    }
}

#[derive(ValueEnum, Clone, Copy, Debug)]
pub(crate) enum TypeSchemeOrAuto {
    Auto,
    F32,
    Bf16,
    F16,
    Int8,
    Int4,
}

impl From<TypeSchemeOrAuto> for Option<Form> {
    fn from(form: TypeSchemeOrAuto) -> Option<Form> {
        match form {
            TypeSchemeOrAuto::Auto => None,
            TypeSchemeOrAuto::F32 => Some(DType::F32.into()),
            TypeSchemeOrAuto::Bf16 => Some(DType::BF16.into()),
            TypeSchemeOrAuto::F16 => Some(DType::F16.into()),
            TypeSchemeOrAuto::Int8 => Some(Scheme::Int8.into()),
            TypeSchemeOrAuto::Int4 => Some(Scheme::Int4.into()),
        }
    }
}

/// What learns on the bench.
#[derive(ValueEnum, Clone, Copy, Debug)]
pub(crate) enum LearningArg {
    Lora,
    Full,
}

impl From<LearningArg> for Learning {
    fn from(learning: LearningArg) -> Learning {
        match learning {
            LearningArg::Lora => Learning::Lora,
            LearningArg::Full => Learning::Full,
        }
    }
}

#[derive(ValueEnum, Clone, Copy, Debug)]
pub(crate) enum TypeOrAuto {
    Auto,
    F32,
    Bf16,
    F16,
}

impl From<TypeOrAuto> for Option<DType> {
    fn from(dtype: TypeOrAuto) -> Option<DType> {
        match dtype {
            TypeOrAuto::Auto => None,
            TypeOrAuto::F32 => Some(DType::F32),
            TypeOrAuto::Bf16 => Some(DType::BF16),
            TypeOrAuto::F16 => Some(DType::F16),
        }
    }
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum PreprocessArg {
    Auto,
    Reference,
    Hf,
}

impl From<PreprocessArg> for Choice {
    fn from(preprocess: PreprocessArg) -> Choice {
        match preprocess {
            PreprocessArg::Auto => Choice::Auto,
            PreprocessArg::Reference => Choice::Reference,
            PreprocessArg::Hf => Choice::HuggingFace,
        }
    }
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum BeamRuleArg {
    Transformers,
    Reference,
}

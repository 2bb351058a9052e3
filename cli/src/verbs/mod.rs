//! The verbs, a file each.

mod assemble;
mod bench;
mod cache;
mod convert;
mod data;
mod doctor;
mod drift;
mod find;
mod generated;
mod mask;
mod playground;
mod plot;
mod predict;
mod random;
mod run;
mod score;
mod show;
mod tokenize;
mod train;
mod verify;

use crate::{
    args::{Args, MaskWay, Verb},
    open,
};
use paligemma::{bench::Settings, text::Task};
use std::process::ExitCode;

/// Does what the command line asks.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    open::set_up_machine(args)?;
    open::watch_ctrl_c();
    match &args.verb {
        Verb::Run { model, images_and_prompt, constrain, opening, choosing } => {
            run::run(args, &model.model, images_and_prompt, *constrain, opening, choosing)
        }
        Verb::Caption(task) => {
            run::no_words(task)?;
            run::task(args, task, &Task::Caption { lang: &task.lang })
        }
        Verb::Ask(task) => {
            let question = task.words.join(" ");
            run::task(args, task, &Task::Answer { lang: &task.lang, question: &question })
        }
        Verb::Ocr(task) => {
            run::no_words(task)?;
            run::task(args, task, &Task::Ocr)
        }
        Verb::Detect(find) => find::detect(args, find),
        Verb::Segment { find, masks } => find::segment(args, find, masks),
        Verb::Predict { model, data, output, batch, constrain, finding, vqvae, opening, choosing } => {
            let job = predict::Job {
                data,
                output: output.as_deref(),
                batch: usize::from(*batch),
                constrain: *constrain,
                finding: finding.finding(),
                vqvae: vqvae.vqvae.as_deref(),
            };
            predict::predict(args, &model.model, &job, opening, choosing)
        }
        Verb::Mask { way: MaskWay::Decode { codes, vqvae, pixels, size, output } } => {
            let paste = mask::Paste { onto: pixels.zip(*size), output: output.as_deref() };
            mask::decode(args, codes, vqvae.vqvae.as_deref(), &paste)
        }
        Verb::Mask { way: MaskWay::Encode { mask, vqvae, pixels } } => {
            mask::encode(args, mask, vqvae.vqvae.as_deref(), *pixels)
        }
        Verb::Data { what } => data::data(args, what),
        Verb::Playground { out, split, count, seed, size, tasks, vqvae } => {
            let job = playground::Job {
                out,
                split: (*split).into(),
                count: u64::from(*count),
                seed: *seed,
                side: usize::from(*size),
                tasks,
                vqvae: vqvae.vqvae.as_deref(),
            };
            playground::playground(args, &job)
        }
        Verb::Score { predictions, metric, seed, vqvae } => {
            score::score(args, predictions, (*metric).into(), *seed, vqvae.vqvae.as_deref())
        }
        Verb::Train(train) => train::train(args, train),
        Verb::Recipes { what } => train::recipes(args, what),
        Verb::Plot { run, output } => plot::plot(args, run, output.as_deref()),
        Verb::Show { model, tensors } => show::show(args, &model.model, *tensors),
        Verb::Assemble { vision, language, out, tokenizer, dtype, seed } => {
            let job = assemble::Job { tokenizer: tokenizer.as_deref(), dtype: (*dtype).into(), seed: *seed };
            assemble::assemble(args, vision, language, out, &job)
        }
        Verb::Convert { input, out, dtype, image_size } => {
            convert::convert(args, input, out, dtype.map(Into::into), *image_size)
        }
        Verb::Drift { model_a, model_b, images, max_tokens } => {
            drift::drift(args, [model_a, model_b], images.as_deref(), (*max_tokens).into())
        }
        Verb::Tokenize { model, text, tokenizer } => {
            tokenize::tokenize(args, model, text, tokenizer.as_deref())
        }
        Verb::Verify { model, golden, dtype, sliding_window } => {
            verify::verify(args, &model.model, golden, dtype.map(Into::into), *sliding_window)
        }
        Verb::Random { config, out, dtype, seed } => {
            random::random(args, config, out, (*dtype).into(), *seed)
        }
        Verb::Bench {
            model,
            random,
            dtype,
            prompt_tokens,
            new_tokens,
            batch,
            repeat,
            turns,
            train,
            table,
        } => {
            let settings = Settings {
                prompt_tokens: (*prompt_tokens).into(),
                new_tokens: (*new_tokens).into(),
                batch: (*batch).into(),
            };
            let train = train.map(Into::into);
            let job = bench::Job { settings, repeat: *repeat, turns: *turns, train, table: *table };
            bench::bench(args, model.as_deref(), random.as_deref(), (*dtype).into(), &job)
        }
        Verb::Pull { id } => cache::pull(args, id),
        Verb::Ls => cache::ls(args),
        Verb::Rm { id, yes } => cache::rm(args, id, *yes),
        Verb::Doctor => doctor::doctor(args),
        Verb::Completions { shell } => generated::completions(args, *shell),
        Verb::Man { verb } => generated::man(args, verb.as_deref()),
    }
}

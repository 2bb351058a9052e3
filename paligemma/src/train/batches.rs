//! The data of a recipe: opened, and drawn in batches.

use std::sync::Arc;

use super::recipe::{EvalRecipe, OnErrorName, Recipe, Source};
use crate::data::{Dataset, Fields, Loader, Mixture, OnError, Part, Preparation, Ready};
use crate::{Error, Result};

fn open_source(source: &Source) -> Result<Dataset> {
    let fields = Fields::parse(&source.image, &source.prefix, &source.suffix)?;
    match &source.playground {
        Some(description) => Dataset::drawn(description.clone(), "playground", fields),
        None => Dataset::open(&source.files, source.image_dir.as_deref(), fields),
    }
}

/// What a recipe learns from.
///
/// # Errors
/// What is wrong with a data set, with its name.
pub(super) fn open_data(recipe: &Recipe) -> Result<Arc<Mixture>> {
    let mut parts = Vec::new();
    for (name, source) in &recipe.data {
        let dataset = open_source(source).map_err(|error| error.at(format!("data.{name}")))?;
        let weight = recipe.mix.get(name).copied().unwrap_or(dataset.len() as f64);
        parts.push(Part { name: name.clone(), dataset, weight });
    }
    Mixture::new(recipe.seed, parts).map(Arc::new)
}

/// What it is evaluated on.
///
/// # Errors
/// What is wrong with the data set.
pub(super) fn open_eval(recipe: &Recipe) -> Result<Option<(EvalRecipe, Arc<Mixture>)>> {
    let Some(eval) = &recipe.eval else { return Ok(None) };
    let dataset = open_source(&eval.source).map_err(|error| error.at("eval"))?;
    Ok(Some((eval.clone(), Arc::new(Mixture::in_order("eval", dataset)?))))
}

/// Batches of a mixture, in the order of its draws.
#[derive(Debug)]
pub(super) struct Batches {
    loader: Loader,
    batch: usize,
}

impl Batches {
    /// Those from draw `first` on.
    ///
    /// # Errors
    /// Those of [`Loader::new`].
    pub(super) fn new(
        recipe: &Recipe,
        mixture: &Arc<Mixture>,
        preparation: &Preparation,
        first: u64,
    ) -> Result<Batches> {
        let on_error = match recipe.on_error {
            OnErrorName::Stop => OnError::Stop,
            OnErrorName::Skip => OnError::Skip,
        };
        let (threads, ahead) = (recipe.loader_threads, 2 * recipe.batch);
        let draws = first..u64::MAX;
        let loader = Loader::new(mixture.clone(), preparation.clone(), on_error, draws, threads, ahead)?;
        Ok(Batches { loader, batch: recipe.batch })
    }

    /// The next batch; `skipped` hears of each example that is left out.
    ///
    /// # Errors
    /// Those of [`Loader::next`].
    pub(super) fn next(&mut self, skipped: &mut dyn FnMut(&Error)) -> Result<Vec<Ready>> {
        let mut examples = Vec::with_capacity(self.batch);
        while examples.len() < self.batch {
            match self.loader.next(skipped)? {
                Some(ready) => examples.push(ready),
                None => return Err(Error::input("the data has no more draws")),
            }
        }
        Ok(examples)
    }

    /// The draw that comes next.
    pub(super) fn position(&self) -> u64 {
        self.loader.position()
    }
}

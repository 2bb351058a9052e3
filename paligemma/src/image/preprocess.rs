//! From a picture to the pixel values that the model sees.
//!
//! Two rules exist, and a checkpoint goes with one of them:
//!
//! - **reference**, big_vision's: bilinear to a square, truncated to bytes, then to [-1, 1]
//!   (`resize(S, antialias=True)|value_range(-1, 1)`). Some transfers were trained without antialiasing
//!   (captioning, GQA, RefCOCO, NLVR2, SciCap among them).
//! - **hf**, transformers': what the processor's configuration says, for the published models bicubic to a square,
//!   rescaled by 1/255, normalised by mean and standard deviation 1/2.
//!
//! Both squeeze the picture to a square whatever its shape; nothing is cropped or padded.
//!
//! In hf mode the values equal those of transformers' `SiglipImageProcessorPil` to the bit: rescaled in f64 and
//! rounded to f32, less the mean, over the standard deviation. Its torchvision twin `SiglipImageProcessor` resizes in
//! other fixed-point arithmetic and folds rescaling into the mean; `goldens/image/README.md` has the differences.

use std::path::Path;

use serde_json::Value;

use super::decode::{Grey16, Picture};
use super::resize::{self, Resample};
use crate::{Error, Result};

/// The most bytes that a processor's configuration may have.
const MAX_CONFIG: u64 = 1 << 20;

/// Which rule to use, as one asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The one that goes with the checkpoint: a folder has transformers' rule, an npz the reference's.
    #[default]
    Auto,
    /// big_vision's.
    Reference,
    /// transformers'.
    HuggingFace,
}

/// How a picture becomes pixel values.
#[derive(Debug, Clone, PartialEq)]
pub enum Preprocess {
    /// big_vision's rule; antialiased unless told otherwise.
    Reference {
        /// Whether reducing averages all pixels that fall together, instead of picking the two nearest.
        antialias: bool,
    },
    /// transformers' rule.
    HuggingFace(ProcessorSettings),
}

impl Preprocess {
    /// The rule for a checkpoint: `folder` is its folder, or none if it is an npz; `image_size` is the model's.
    ///
    /// [`Choice::HuggingFace`] without a configuration in the folder, or without a folder, means the published
    /// settings.
    ///
    /// # Errors
    /// Those of [`ProcessorSettings::from_folder`].
    pub fn choose(choice: Choice, folder: Option<&Path>, image_size: usize) -> Result<Preprocess> {
        let reference = match choice {
            Choice::Auto => folder.is_none(),
            Choice::Reference => true,
            Choice::HuggingFace => false,
        };
        if reference {
            return Ok(Preprocess::Reference { antialias: true });
        }
        let settings = match folder {
            Some(folder) => ProcessorSettings::from_folder(folder, image_size)?,
            None => None,
        };
        Ok(Preprocess::HuggingFace(settings.unwrap_or_else(|| ProcessorSettings::published(image_size))))
    }

    /// How this rule's own program reads grey PNGs of 16 bits.
    pub fn grey16(&self) -> Grey16 {
        match self {
            Preprocess::Reference { .. } => Grey16::HighByte,
            Preprocess::HuggingFace(_) => Grey16::Clip,
        }
    }
}

/// The settings of transformers' SigLIP image processor that decide about pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessorSettings {
    /// Whether pictures are resized; if not, they must have the model's size.
    pub do_resize: bool,
    /// Height and width in pixels.
    pub size: (usize, usize),
    /// The filter.
    pub resample: Resample,
    /// Whether values are multiplied by `rescale_factor`.
    pub do_rescale: bool,
    /// 1/255 as published.
    pub rescale_factor: f64,
    /// Whether the mean is subtracted and the standard deviation divided by.
    pub do_normalize: bool,
    /// Mean of red, green and blue.
    pub image_mean: [f64; 3],
    /// Standard deviation of red, green and blue.
    pub image_std: [f64; 3],
}

impl ProcessorSettings {
    /// The settings of the published models at `image_size`, which are also the defaults of transformers' class but
    /// for the size, 224 there.
    pub fn published(image_size: usize) -> Self {
        ProcessorSettings {
            do_resize: true,
            size: (image_size, image_size),
            resample: Resample::Bicubic,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: [0.5; 3],
            image_std: [0.5; 3],
        }
    }

    /// As `preprocessor_config.json` has them, so that transformers' `AutoProcessor` loads the folder too;
    /// `num_tokens` are those of an image.
    pub fn to_json(&self, num_tokens: usize) -> Value {
        let (height, width) = self.size;
        serde_json::json!({
            "do_convert_rgb": true,
            "do_normalize": self.do_normalize,
            "do_rescale": self.do_rescale,
            "do_resize": self.do_resize,
            "image_mean": self.image_mean,
            "image_processor_type": "SiglipImageProcessor",
            "image_seq_length": num_tokens,
            "image_std": self.image_std,
            "processor_class": "PaliGemmaProcessor",
            "resample": self.resample.number(),
            "rescale_factor": self.rescale_factor,
            "size": { "height": height, "width": width },
        })
    }

    /// The settings in a checkpoint's folder, or none if it has no processor configuration: the object
    /// `image_processor` of `processor_config.json` if that has one, else `preprocessor_config.json`, as transformers
    /// looks for them.
    ///
    /// # Errors
    /// A file that cannot be read; those of [`ProcessorSettings::from_json`]; a size that is not the model's.
    pub fn from_folder(folder: &Path, image_size: usize) -> Result<Option<Self>> {
        let nested = read_json(&folder.join("processor_config.json"))?
            .and_then(|mut config| config.get_mut("image_processor").map(Value::take))
            .map(|config| (config, "processor_config.json, image_processor"));
        let found = match nested {
            Some(found) => Some(found),
            None => read_json(&folder.join("preprocessor_config.json"))?
                .map(|config| (config, "preprocessor_config.json")),
        };
        let Some((config, place)) = found else { return Ok(None) };
        let read = || -> Result<Self> {
            let settings = Self::from_json(&config)?;
            settings.check_size(image_size)?;
            Ok(settings)
        };
        read().map(Some).map_err(|error| error.at(folder.join(place).display().to_string()))
    }

    /// The settings in a `preprocessor_config.json` or in the `image_processor` object of a `processor_config.json`.
    /// Absent keys and nulls take the defaults of transformers' class; keys that do not decide about pixels are
    /// passed over.
    ///
    /// # Errors
    /// [`crate::Kind::Model`]: another image processor, an unsupported setting, a value of the wrong type or out of range.
    pub fn from_json(config: &Value) -> Result<Self> {
        let Value::Object(keys) = config else {
            return Err(Error::model("the image processor's configuration is not an object"));
        };
        let key = |name: &str| keys.get(name).filter(|value| !value.is_null());
        let wrong = |name: &str, value: &Value, expected: &str| {
            Error::model(format!("the image processor's `{name}` is {value}")).expected(expected)
        };
        let flag = |name: &str, default: bool| match key(name) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| wrong(name, value, "true or false")),
        };
        let numbers = |name: &str| {
            let Some(value) = key(name) else { return Ok([0.5; 3]) };
            let number = |value: &Value| value.as_f64().filter(|number| number.is_finite());
            let found = match value {
                Value::Array(list) => list.iter().map(number).collect::<Option<Vec<f64>>>(),
                one => number(one).map(|number| vec![number; 3]),
            };
            found
                .and_then(|list| <[f64; 3]>::try_from(list).ok())
                .ok_or_else(|| wrong(name, value, "three numbers, or one"))
        };

        for name in ["image_processor_type", "feature_extractor_type"] {
            let Some(value) = key(name) else { continue };
            let known = [
                "SiglipImageProcessor",
                "SiglipImageProcessorFast",
                "SiglipImageProcessorPil",
                "SiglipFeatureExtractor",
            ];
            if !value.as_str().is_some_and(|value| known.contains(&value)) {
                return Err(wrong(name, value, "SiglipImageProcessor, the one that PaliGemma has"));
            }
        }
        for name in ["do_center_crop", "do_pad"] {
            if flag(name, false)? {
                return Err(wrong(name, &Value::Bool(true), "false: cropping and padding are not supported"));
            }
        }
        let defaults = ProcessorSettings::published(224);
        let size = match key("size") {
            None => defaults.size,
            Some(value) => {
                let side = |name: &str| value.get(name).and_then(Value::as_u64).filter(|&side| side > 0);
                match (side("height"), side("width")) {
                    (Some(height), Some(width)) => (height as usize, width as usize),
                    _ => return Err(wrong("size", value, r#"{"height": …, "width": …} in pixels"#)),
                }
            }
        };
        let resample = match key("resample") {
            None => defaults.resample,
            Some(value) => value.as_u64().and_then(Resample::from_number).ok_or_else(|| {
                wrong(
                    "resample",
                    value,
                    "one of Pillow's: 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5 hamming",
                )
            })?,
        };
        let rescale_factor = match key("rescale_factor") {
            None => defaults.rescale_factor,
            Some(value) => value
                .as_f64()
                .filter(|factor| factor.is_finite())
                .ok_or_else(|| wrong("rescale_factor", value, "a number, 1/255 as published"))?,
        };
        let image_std = numbers("image_std")?;
        if image_std.iter().any(|&deviation| deviation as f32 == 0.0) {
            return Err(wrong("image_std", &keys["image_std"], "no zero: it is divided by"));
        }
        Ok(ProcessorSettings {
            do_resize: flag("do_resize", true)?,
            size,
            resample,
            do_rescale: flag("do_rescale", true)?,
            rescale_factor,
            do_normalize: flag("do_normalize", true)?,
            image_mean: numbers("image_mean")?,
            image_std,
        })
    }

    fn check_size(&self, image_size: usize) -> Result<()> {
        let (height, width) = self.size;
        if self.do_resize && self.size != (image_size, image_size) {
            return Err(Error::model(format!("the image processor's `size` is {height}×{width}"))
                .expected(format!("{image_size}×{image_size}, the model's `image_size`")));
        }
        Ok(())
    }

    /// The pixel value of each byte in channel `c`. The order of roundings is transformers'.
    fn values(&self, c: usize) -> [f32; 256] {
        std::array::from_fn(|byte| {
            let byte = byte as u8;
            let mut value = f32::from(byte);
            if self.do_rescale {
                value = (f64::from(byte) * self.rescale_factor) as f32;
            }
            if self.do_normalize {
                value = (value - self.image_mean[c] as f32) / self.image_std[c] as f32;
            }
            value
        })
    }
}

/// The JSON file at `path`, or none if there is no such file.
fn read_json(path: &Path) -> Result<Option<Value>> {
    let place = || path.display().to_string();
    let size = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.map_err(|error| Error::io(path, error))?.len(),
    };
    if size > MAX_CONFIG {
        return Err(Error::model(format!("this configuration has {size} bytes"))
            .at(place())
            .expected(format!("at most {MAX_CONFIG}")));
    }
    let text = std::fs::read(path).map_err(|error| Error::io(path, error))?;
    let value = serde_json::from_slice(&text)
        .map_err(|error| Error::model(format!("this configuration is not JSON: {error}")).at(place()))?;
    Ok(Some(value))
}

/// The pixel values of `picture` for a model whose images have `image_size` × `image_size` pixels: f32, row-major
/// [3, image_size, image_size], red first.
///
/// # Errors
/// [`crate::Kind::Model`] if the processor's size is not the model's; [`crate::Kind::Input`] if the processor does
/// not resize and the picture has not the model's size.
pub fn pixel_values(picture: &Picture, image_size: usize, how: &Preprocess) -> Result<Vec<f32>> {
    let (square, values) = match how {
        Preprocess::Reference { antialias } => {
            // (v - 0) / (255 - 0), then -1 + x · 2, as big_vision's value_range does it.
            let values = std::array::from_fn(|byte| -1.0 + byte as f32 / 255.0 * 2.0);
            (resize::as_tensorflow(picture, image_size, image_size, *antialias), [values; 3])
        }
        Preprocess::HuggingFace(settings) => {
            settings.check_size(image_size)?;
            let square = if settings.do_resize {
                resize::as_pillow(picture, image_size, image_size, settings.resample)
            } else if (picture.width, picture.height) == (image_size, image_size) {
                picture.clone()
            } else {
                return Err(Error::input(format!(
                    "this picture's size is {}×{}",
                    picture.width, picture.height
                ))
                .expected(format!(
                    "{image_size}×{image_size}: this checkpoint's processor does not resize"
                )));
            };
            (square, std::array::from_fn(|c| settings.values(c)))
        }
    };
    let plane = image_size * image_size;
    let mut out = Vec::with_capacity(plane * 3);
    for (c, values) in values.iter().enumerate() {
        out.extend(square.rgb.iter().skip(c).step_by(3).map(|&byte| values[usize::from(byte)]));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Kind;

    #[test]
    fn the_published_configuration_is_the_default() {
        // google/paligemma-3b-pt-448, as saved by several versions of transformers.
        let published = json!({
            "do_convert_rgb": null, "do_normalize": true, "do_rescale": true, "do_resize": true,
            "image_mean": [0.5, 0.5, 0.5], "image_processor_type": "SiglipImageProcessor", "image_seq_length": 1024,
            "image_std": [0.5, 0.5, 0.5], "processor_class": "PaliGemmaProcessor", "resample": 3,
            "rescale_factor": 0.00392156862745098, "size": {"height": 448, "width": 448}
        });
        assert_eq!(ProcessorSettings::from_json(&published).unwrap(), ProcessorSettings::published(448));
        assert_eq!(ProcessorSettings::from_json(&json!({})).unwrap(), ProcessorSettings::published(224));
    }

    #[test]
    fn unsupported_settings_are_named() {
        let check = |config: Value, what: &str| {
            let error = ProcessorSettings::from_json(&config).expect_err(&config.to_string());
            assert_eq!(error.kind(), Kind::Model, "{config}");
            assert!(error.what().contains(what), "{config}: {error}");
        };
        check(json!([]), "object");
        check(json!({"image_processor_type": "CLIPImageProcessor"}), "CLIPImageProcessor");
        check(json!({"do_center_crop": true}), "do_center_crop");
        check(json!({"do_pad": true}), "do_pad");
        check(json!({"do_resize": 1}), "do_resize");
        check(json!({"size": 224}), "size");
        check(json!({"size": {"shortest_edge": 224}}), "shortest_edge");
        check(json!({"size": {"height": 0, "width": 224}}), "size");
        check(json!({"resample": 6}), "resample");
        check(json!({"resample": "bicubic"}), "resample");
        check(json!({"rescale_factor": "1/255"}), "rescale_factor");
        check(json!({"image_mean": [0.5, 0.5]}), "image_mean");
        check(json!({"image_std": [0.5, 0.5, 0]}), "image_std");
        check(json!({"image_std": [0.5, "x", 0]}), "image_std");
    }

    #[test]
    fn the_folder_decides() {
        let folder = tempfile::tempdir().unwrap();
        let choose = |choice, size| Preprocess::choose(choice, Some(folder.path()), size);
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let hf = |settings| Preprocess::HuggingFace(settings);
        let published = ProcessorSettings::published(224);

        assert_eq!(ProcessorSettings::from_folder(folder.path(), 224).unwrap(), None);
        assert_eq!(choose(Choice::Auto, 224).unwrap(), hf(published.clone()));
        write("preprocessor_config.json", r#"{"resample": 2}"#);
        let bilinear = ProcessorSettings { resample: Resample::Bilinear, ..published.clone() };
        assert_eq!(choose(Choice::Auto, 224).unwrap(), hf(bilinear.clone()));
        // Without the nested object the other file counts.
        write("processor_config.json", r#"{"processor_class": "PaliGemmaProcessor"}"#);
        assert_eq!(choose(Choice::HuggingFace, 224).unwrap(), hf(bilinear));
        write("processor_config.json", r#"{"image_processor": {"resample": 1}}"#);
        let lanczos = ProcessorSettings { resample: Resample::Lanczos, ..published };
        assert_eq!(choose(Choice::Auto, 224).unwrap(), hf(lanczos));

        assert_eq!(choose(Choice::Reference, 224).unwrap(), Preprocess::Reference { antialias: true });
        assert_eq!(
            Preprocess::choose(Choice::Auto, None, 448).unwrap(),
            Preprocess::Reference { antialias: true }
        );
        assert_eq!(
            Preprocess::choose(Choice::HuggingFace, None, 448).unwrap(),
            hf(ProcessorSettings::published(448))
        );

        let error = choose(Choice::Auto, 448).unwrap_err().to_string();
        assert!(
            error.contains("224×224") && error.contains("448×448") && error.contains("processor_config"),
            "{error}"
        );
        write("processor_config.json", "{");
        assert_eq!(choose(Choice::Auto, 224).unwrap_err().kind(), Kind::Model);
    }

    #[test]
    fn without_resizing_the_size_must_be_right() {
        let how = Preprocess::HuggingFace(ProcessorSettings {
            do_resize: false,
            ..ProcessorSettings::published(224)
        });
        let picture = |side: usize| Picture { width: side, height: side, rgb: vec![255; side * side * 3] };
        assert_eq!(pixel_values(&picture(14), 14, &how).unwrap(), vec![1.0; 14 * 14 * 3]);
        assert_eq!(pixel_values(&picture(15), 14, &how).unwrap_err().kind(), Kind::Input);
    }

    #[test]
    fn planes_lie_one_behind_the_other() {
        let picture = Picture { width: 1, height: 1, rgb: vec![0, 51, 255] };
        for how in [
            Preprocess::Reference { antialias: true },
            Preprocess::Reference { antialias: false },
            Preprocess::HuggingFace(ProcessorSettings::published(2)),
        ] {
            let values = pixel_values(&picture, 2, &how).unwrap();
            let expected = [[-1.0; 4], [-0.6; 4], [1.0; 4]].concat();
            assert!(
                values.iter().zip(expected).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6),
                "{values:?}"
            );
        }
    }
}

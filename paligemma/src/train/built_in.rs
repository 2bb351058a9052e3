//! The recipes that come with the program.

/// Each with its name and its text, whose first lines say what it is for.
pub const RECIPES: &[(&str, &str)] = &[
    ("transfer", include_str!("../../../recipes/transfer.toml")),
    ("lora", include_str!("../../../recipes/lora.toml")),
    ("low-memory", include_str!("../../../recipes/low-memory.toml")),
    ("siglip", include_str!("../../../recipes/siglip.toml")),
    ("stage1-3b", include_str!("../../../recipes/stage1-3b.toml")),
    ("stage2-3b-448", include_str!("../../../recipes/stage2-3b-448.toml")),
    ("stage2-3b-896", include_str!("../../../recipes/stage2-3b-896.toml")),
    ("vqvae", include_str!("../../../recipes/vqvae.toml")),
    ("overfit", include_str!("../../../recipes/overfit.toml")),
    ("nano-stage0-image", include_str!("../../../recipes/nano-stage0-image.toml")),
    ("nano-stage0-language", include_str!("../../../recipes/nano-stage0-language.toml")),
    ("nano-stage1-one", include_str!("../../../recipes/nano-stage1-one.toml")),
    ("nano-stage1", include_str!("../../../recipes/nano-stage1.toml")),
    ("nano-stage2", include_str!("../../../recipes/nano-stage2.toml")),
    ("nano-transfer-count", include_str!("../../../recipes/nano-transfer-count.toml")),
    ("nano-transfer-refer", include_str!("../../../recipes/nano-transfer-refer.toml")),
    ("nano-transfer-aerial", include_str!("../../../recipes/nano-transfer-aerial.toml")),
];

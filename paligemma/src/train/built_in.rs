//! The recipes that come with the program.

/// Each with its name and its text, whose first lines say what it is for.
pub const RECIPES: &[(&str, &str)] = &[
    ("transfer", include_str!("../../../recipes/transfer.toml")),
    ("lora", include_str!("../../../recipes/lora.toml")),
    ("low-memory", include_str!("../../../recipes/low-memory.toml")),
    ("pretrain", include_str!("../../../recipes/pretrain.toml")),
    ("siglip", include_str!("../../../recipes/siglip.toml")),
    ("vqvae", include_str!("../../../recipes/vqvae.toml")),
    ("overfit", include_str!("../../../recipes/overfit.toml")),
];

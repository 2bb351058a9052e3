//! The model: SigLIP, the projector, Gemma, and the prefix-LM join.

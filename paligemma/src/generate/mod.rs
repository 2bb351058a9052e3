//! Generation: the loop, sampling, beam search.

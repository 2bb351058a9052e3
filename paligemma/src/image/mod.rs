//! Pictures: decoding within limits, the two resizers, pixel values.

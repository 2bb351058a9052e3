//! Pictures: decoding within limits, the two resizers, pixel values; masks.

mod chart;
pub mod decode;
mod draw;
mod encode;
mod jpeg;
mod mask;
mod polygon;
pub mod preprocess;
pub mod resize;
mod rle;
mod sheet;
mod tensorflow;

pub use chart::{Curve, Panel, chart_png, chart_svg};
pub use decode::{Grey16, Picture, decode, decode_as, decode_file, decode_file_as};
pub(crate) use draw::Letters;
pub use draw::{Shape, colour, draw};
pub use encode::{png_of_mask, png_of_picture};
pub use mask::{MASK_SIDE, Mask, Plane, Rect, mask_of_picture};
pub use polygon::{Polygon, fill_polygons, outline_polygons};
pub use preprocess::{Choice, Preprocess, ProcessorSettings, pixel_values};
pub use resize::Resample;
pub use rle::Rle;
pub use sheet::{Tile, contact_sheet};
pub use tensorflow::Method;

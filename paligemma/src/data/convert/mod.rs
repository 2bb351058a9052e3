//! Other programs' boxes and masks as examples: COCO, LVIS, YOLO, Pascal VOC, and folders of masks.

mod coco;
mod mask_folder;
mod objects;
mod voc;
mod yolo;

pub use coco::{read_coco, read_lvis};
pub use mask_folder::read_mask_folder;
pub use objects::{Annotated, Annotation, Converted, Group, Shape, Skipped, Task, convert};
pub use voc::read_voc;
pub use yolo::{read_yolo, read_yolo_names};

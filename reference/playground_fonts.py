"""Makes paligemma/src/data/playground/fonts/: what the playground writes words with, beside the labels' Roboto Medium.

    python reference/playground_fonts.py FOLDER    # of RobotoSlab-Bold.otf (Debian's fonts-roboto-slab
        # 1.100263+20170512-2), RobotoCondensed-BoldItalic.ttf and Roboto-Black.ttf (fonts-roboto-unhinted
        # 2:0~20170802-3); all Apache-2.0

Made with fonttools 4.68.0. Letters and digits of English, no hints, no kerning.
"""

import pathlib
import sys

from fontTools import subset

OUT = pathlib.Path(__file__).resolve().parent.parent / "paligemma" / "src" / "data" / "playground" / "fonts"
FONTS = {
    "RobotoSlab-Bold.otf": "slab.otf",
    "Roboto-Black.ttf": "black.ttf",
    "RobotoCondensed-BoldItalic.ttf": "italic.ttf",
}

for source, name in FONTS.items():
    subset.main(
        [
            str(next(pathlib.Path(sys.argv[1]).rglob(source))),
            "--unicodes=U+20,U+2D,U+2E,U+30-3A,U+41-5A,U+61-7A",
            "--layout-features=",
            "--no-hinting",
            "--name-IDs=0,1,2,13,14",
            "--drop-tables+=GSUB,GPOS,GDEF,kern,hdmx,VDMX,LTSH,gasp,DSIG,post",
            f"--output-file={OUT / name}",
        ]
    )

"""Makes paligemma/src/image/label.ttf: the letters that labels are drawn with.

    python reference/label_font.py Roboto-Medium.ttf     # of Debian's fonts-roboto-unhinted 2:0~20170802-3; Apache-2.0

Made with fonttools 4.68.0. Latin, Greek and Cyrillic, no hints, no kerning: 30 kB of 300.
"""

import pathlib
import sys

from fontTools import subset

OUT = pathlib.Path(__file__).resolve().parent.parent / "paligemma" / "src" / "image" / "label.ttf"
RANGES = "U+20-7E,U+A0-17F,U+386-3CE,U+401-451,U+490,U+491,U+404,U+406,U+407,U+454,U+456,U+457,U+2013,U+2014,U+2018-201D,U+2026"

subset.main(
    [
        sys.argv[1],
        f"--unicodes={RANGES}",
        "--layout-features=",
        "--no-hinting",
        "--name-IDs=0,1,2,13,14",
        "--drop-tables+=GSUB,GPOS,GDEF,kern,hdmx,VDMX,LTSH,gasp,DSIG,post",
        f"--output-file={OUT}",
    ]
)

"""Draws docs/picture.png, the picture that the README's first command asks about.

    python reference/picture.py docs/picture.png

Pillow 13.0.0. A white house with a red roof, a tree, a sun and a blue car: things that a model can name, count, find and
outline. It is drawn four times as large and reduced, so that edges are smooth.
"""

import sys

from PIL import Image, ImageDraw

SIDE = 448
SCALE = 4


def main():
    image = Image.new("RGB", (SIDE * SCALE, SIDE * SCALE), "#9fd3f2")
    draw = ImageDraw.Draw(image)

    def scaled(*numbers):
        return [n * SCALE for n in numbers]

    # Grass and road.
    draw.rectangle(scaled(0, 310, SIDE, SIDE), fill="#7cb75b")
    draw.rectangle(scaled(0, 372, SIDE, 428), fill="#6d7077")
    for x in range(12, SIDE, 64):
        draw.rectangle(scaled(x, 398, x + 32, 402), fill="#f3f1e4")
    # Sun.
    draw.ellipse(scaled(352, 32, 416, 96), fill="#ffd23f")
    # House: wall, roof, door, windows.
    draw.rectangle(scaled(56, 190, 246, 330), fill="#fbf7ee")
    draw.polygon(scaled(36, 190, 151, 104, 266, 190), fill="#c8402f")
    draw.rectangle(scaled(132, 254, 172, 330), fill="#7a4b2a")
    draw.ellipse(scaled(162, 290, 168, 296), fill="#ffd23f")
    for x in (76, 192):
        draw.rectangle(scaled(x, 216, x + 36, 252), fill="#5a8fc4")
        draw.rectangle(scaled(x + 16, 216, x + 20, 252), fill="#fbf7ee")
        draw.rectangle(scaled(x, 232, x + 36, 236), fill="#fbf7ee")
    # Tree.
    draw.rectangle(scaled(338, 240, 356, 332), fill="#7a4b2a")
    for x, y, r in ((347, 190, 46), (314, 222, 34), (380, 222, 34)):
        draw.ellipse(scaled(x - r, y - r, x + r, y + r), fill="#3f8a43")
    # Car.
    draw.polygon(scaled(226, 364, 246, 332, 312, 332, 336, 364), fill="#2456a6")
    draw.polygon(scaled(240, 362, 254, 340, 276, 340, 276, 362), fill="#d7ecf7")
    draw.polygon(scaled(282, 362, 282, 340, 308, 340, 322, 362), fill="#d7ecf7")
    draw.rounded_rectangle(scaled(204, 362, 362, 394), radius=10 * SCALE, fill="#2456a6")
    for x in (240, 326):
        draw.ellipse(scaled(x - 17, 377, x + 17, 411), fill="#26282c")
        draw.ellipse(scaled(x - 7, 387, x + 7, 401), fill="#c9ccd1")

    image.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(sys.argv[1], optimize=True)


if __name__ == "__main__":
    main()

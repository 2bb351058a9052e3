"""Makes goldens/image/: small picture files, and what Pillow, TensorFlow and transformers make of pictures.

    python reference/pictures.py files       # files/ and files.tsv         (Pillow; cjpeg of libjpeg-turbo-progs)
    python reference/pictures.py resize      # pillow.tsv, tensorflow.tsv and methods.tsv (Pillow, TensorFlow)
    python reference/pictures.py processor   # processor.tsv                 (transformers; torchvision for the report)

Made with Pillow 13.0.0 (libjpeg-turbo 3.2.0, libwebp 1.6.0), tensorflow-cpu 2.21.0, transformers 5.23.0,
numpy 2.4.6, torch 2.15.0, torchvision 0.29.2, libjpeg-turbo-progs 2.1.5 of Debian 12.

Large inputs are not stored: `made` computes them, and paligemma/tests/it/image.rs computes the same. Outputs are
stored as the CRC-32 of their bytes, since they must be equal to the bit.
"""

import io
import pathlib
import struct
import subprocess
import sys
import tempfile
import zlib

import numpy as np
from PIL import Image, ImageOps

OUT = pathlib.Path(__file__).resolve().parent.parent / "goldens" / "image"
U64 = np.uint64


def mixed(x):
    """SplitMix64's output function, on an array."""
    x = (x + U64(0x9E3779B97F4A7C15)).astype(U64)
    x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
    return x ^ (x >> U64(31))


def made(kind, seed, width, height):
    """A picture [height, width, 3] in u8: "noise", "blocks" of full and empty, or smooth "waves"."""
    y, x, c = np.meshgrid(*(np.arange(n, dtype=U64) for n in (height, width, 3)), indexing="ij")
    key = lambda y, x: mixed((U64(seed) << U64(40)) ^ (y << U64(20)) ^ (x << U64(2)) ^ c)
    if kind == "noise":
        return (key(y, x) >> U64(56)).astype(np.uint8)
    if kind == "blocks":
        return ((key(y // U64(7), x // U64(5)) >> U64(63)) * U64(255)).astype(np.uint8)
    assert kind == "waves"
    steps = key(np.zeros_like(y), np.zeros_like(x))
    across, down = (steps >> U64(8)) % U64(13), (steps >> U64(16)) % U64(11)
    at = (x * across + y * down + (steps >> U64(24)) % U64(512)) % U64(512)
    return np.where(at < 256, at, U64(511) - at).astype(np.uint8)


def crc(array):
    return f"{zlib.crc32(np.ascontiguousarray(array).tobytes()):08x}"


def write(name, head, rows):
    lines = ["\t".join(map(str, row)) for row in [head, *rows]]
    (OUT / name).write_text("\n".join(lines) + "\n")
    print(f"{name}: {len(rows)} rows")


# --- files -----------------------------------------------------------------------------------------

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, bits, colour, extra=b"", seed=1):
    """A PNG of noise of any kind of pixel."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = (width * samples * bits + 7) // 8
    noise = made("noise", seed, row, height)[..., 0]
    raw = b"".join(b"\0" + line.tobytes() for line in noise)
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(raw, 9))
            + chunk(b"IEND", b""))


def cjpeg(array, *options):
    with tempfile.NamedTemporaryFile(suffix=".ppm") as ppm:
        Image.fromarray(array).save(ppm.name)
        return subprocess.run(["cjpeg", *options, ppm.name], check=True, capture_output=True).stdout


def files():
    found = {}

    def save(name, image, **options):
        buffer = io.BytesIO()
        image.save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[name.rsplit(".")[-1]], **options)
        found[name] = buffer.getvalue()

    picture = lambda kind, seed, width, height: Image.fromarray(made(kind, seed, width, height))
    small = picture("waves", 3, 21, 13)
    for tag in range(10):
        exif = Image.Exif()
        exif[0x112] = tag
        save(f"exif-{tag}.jpg", small, exif=exif)
    for tag in (3, 6):
        exif = Image.Exif()
        exif[0x112] = tag
        save(f"exif-{tag}.png", small, exif=exif)
        save(f"exif-{tag}.webp", small, exif=exif, lossless=True)
    save("xmp-6.jpg", small, xmp=b'<rdf tiff:Orientation="6"/>')
    save("xmp-8.webp", small, xmp=b"<tiff:Orientation>8</tiff:Orientation>", lossless=True)

    alpha = made("noise", 4, 21, 13)[..., 0]
    alpha[:5] = 0
    rgba = Image.fromarray(np.dstack([np.asarray(small), alpha]))
    save("rgba.webp", rgba, lossless=True, exact=True)
    save("rgba-lossy.webp", rgba)
    rgb = [picture("waves", seed, 21, 13) for seed in (5, 6)]
    save("animated.webp", rgb[0], save_all=True, append_images=rgb[1:], lossless=True)
    save("animated-lossy.webp", rgb[0], save_all=True, append_images=rgb[1:])
    save("animated-rgba.webp", rgba, save_all=True, append_images=rgb, lossless=True, exact=True)
    save("animated.png", rgb[0], save_all=True, append_images=rgb[1:])
    save("animated-default.png", rgb[0], save_all=True, append_images=rgb[1:], default_image=True)
    save("interlaced-not.png", small)
    for kind in ("waves", "noise", "blocks"):
        save(f"{kind}-lossless.webp", picture(kind, 7, 33, 17), lossless=True)
        save(f"{kind}-lossy.webp", picture(kind, 7, 45, 31), quality=80)

    for bits, colour in [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (8, 4), (16, 4), (8, 6), (16, 6)]:
        found[f"png-{colour}-{bits}.png"] = png(13, 9, bits, colour)
    found["png-0-16-transparent.png"] = png(13, 9, 16, 0, chunk(b"tRNS", b"\0\1"))
    found["png-2-8-transparent.png"] = png(13, 9, 8, 2, chunk(b"tRNS", b"\0\1\0\2\0\3"))
    found["png-0-8-gamma.png"] = png(13, 9, 8, 0, chunk(b"gAMA", struct.pack(">I", 100000)))
    for bits in (1, 2, 4, 8):
        colours = made("noise", 8, 1 << bits, 1).tobytes()
        found[f"palette-{bits}.png"] = png(13, 9, bits, 3, chunk(b"PLTE", colours))
        found[f"palette-{bits}-transparent.png"] = png(13, 9, bits, 3, chunk(b"PLTE", colours) + chunk(b"tRNS", b"\x40\0"))
    found["palette-8-short.png"] = png(13, 9, 8, 3, chunk(b"PLTE", made("noise", 8, 3, 1).tobytes()))

    # JPEG: sizes around the block and the fancy upsampling's special cases, every sampling, both codings.
    for number, (width, height) in enumerate([(1, 1), (2, 3), (5, 4), (8, 8), (17, 15), (16, 33), (40, 25)]):
        for kind in ("noise", "waves"):
            for sampling, name in ((0, "444"), (1, "422"), (2, "420")):
                progressive = (number + sampling) % 2 == 0
                save(f"{kind}-{width}x{height}-{name}{'-p' if progressive else ''}.jpg",
                     picture(kind, number, width, height), quality=75 + 10 * sampling, subsampling=sampling,
                     progressive=progressive)
    array = made("noise", 9, 37, 23)
    for sample in ("4x1", "4x2", "1x2", "2x2,1x1,2x1", "2x2,2x1,1x2", "1x4", "3x1", "1x1,2x2,2x2"):
        found[f"sample-{sample.replace(',', '-')}.jpg"] = cjpeg(array, "-sample", sample)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as scans:
        scans.write("0;\n1,2;\n")
        scans.flush()
        found["scans.jpg"] = cjpeg(array, "-scans", scans.name)
    found["grey-2x2.jpg"] = cjpeg(array, "-grayscale", "-sample", "2x2")
    found["rgb.jpg"] = cjpeg(array, "-rgb")
    found["restart.jpg"] = cjpeg(array, "-restart", "1B")
    found["restart-progressive.jpg"] = cjpeg(array, "-restart", "2B", "-progressive")
    found["quality-1.jpg"] = cjpeg(array, "-quality", "1")
    found["quality-1-16bit-tables.jpg"] = cjpeg(array, "-quality", "1", "-progressive")
    found["quality-100.jpg"] = cjpeg(array, "-quality", "100", "-sample", "1x1")
    image = Image.fromarray(array)
    save("grey.jpg", image.convert("L"))
    save("cmyk.jpg", image.convert("CMYK"))
    save("cmyk-progressive.jpg", image.convert("CMYK"), progressive=True, quality=30)
    # YCCK: Pillow writes none. The same file with Adobe's transform byte set to 2 is one.
    cmyk = bytearray(found["cmyk.jpg"])
    cmyk[cmyk.index(b"Adobe") + 11] = 2
    found["ycck.jpg"] = bytes(cmyk)
    found["trailing.jpg"] = found["grey.jpg"] + b"trailing" * 9

    (OUT / "files").mkdir(parents=True, exist_ok=True)
    rows = []
    for name, data in sorted(found.items()):
        (OUT / "files" / name).write_bytes(data)
        array = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
        rows.append((name, array.shape[1], array.shape[0], crc(array)))
    write("files.tsv", ("file", "width", "height", "crc32"), rows)
    print(sum(map(len, found.values())), "bytes")


# --- resize ----------------------------------------------------------------------------------------

SIZES = [(1, 1), (1, 2), (2, 1), (3, 5), (7, 300), (300, 7), (14, 14), (13, 29), (224, 224), (223, 225), (448, 448),
         (640, 480), (481, 333), (1, 500), (500, 1), (100, 449), (897, 113), (50, 50)]
METHODS = {"bicubic": 0, "lanczos3": 1, "area": 2, "mitchellcubic": 3}
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def cases():
    kinds = ("noise", "waves", "blocks")
    number = 0
    for size in SIZES:
        for target in (14, 224, 448):
            yield kinds[number % 3], number, *size, target
            number += 1


def resize():
    rows = []
    for kind, seed, width, height, target in cases():
        for name, number in FILTERS.items():
            # Bicubic everywhere, hamming too since its constants are delicate, the others on every third case.
            if name in ("bicubic", "hamming") or (seed + number) % 3 == 0:
                image = Image.fromarray(made(kind, seed, width, height)).resize((target, target), number)
                rows.append((kind, seed, width, height, target, name, crc(np.asarray(image))))
    for kind in ("noise", "waves", "blocks"):
        for seed in range(100, 125):
            width, height = 1 + seed * 7919 % 311, 1 + seed * 104729 % 257
            image = Image.fromarray(made(kind, seed, width, height)).resize((56, 56), 3)
            rows.append((kind, seed, width, height, 56, "bicubic", crc(np.asarray(image))))
    # With 0.54 and 0.46 in f64 instead of f32 a few pixels of these would differ.
    for seed in range(200, 230):
        width, height = 300 + seed * 7919 % 311, 200 + seed * 104729 % 257
        image = Image.fromarray(made("noise", seed, width, height)).resize((110, 110), 5)
        rows.append(("noise", seed, width, height, 110, "hamming", crc(np.asarray(image))))
    write("pillow.tsv", ("kind", "seed", "width", "height", "target", "filter", "crc32"), rows)

    import tensorflow as tf

    rows = []
    for kind, seed, width, height, target in cases():
        for antialias in (True, False):
            image = tf.constant(made(kind, seed, width, height))
            # big_vision/pp/ops_image.py:get_resize, then ops_general.py:value_range.
            image = tf.image.resize(image, [target, target], method="bilinear", antialias=antialias)
            image = tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8)
            value = tf.cast(image, tf.float32)
            value = (value - 0.0) / (255.0 - 0.0)
            value = -1 + value * (1 - -1)
            values = np.transpose(value.numpy(), (2, 0, 1))
            rows.append((kind, seed, width, height, target, int(antialias), crc(image.numpy()), crc(values)))
    write("tensorflow.tsv", ("kind", "seed", "width", "height", "target", "antialias", "crc32", "values_crc32"), rows)

    rows = []
    for kind, seed, width, height, target in cases():
        for method in ("bicubic", "lanczos3", "area", "mitchellcubic"):
            for antialias in (True, False):
                # big_vision/pp/proj/paligemma/robustness.py:resize_r, every method on every other case.
                if (seed + METHODS[method] + antialias) % 2 or (method == "area" and antialias):
                    continue
                image = tf.constant(made(kind, seed, width, height))
                image = tf.image.resize(image, [target, target], method=method, antialias=antialias)
                image = tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8)
                rows.append((kind, seed, width, height, target, method, int(antialias), crc(image.numpy())))
    write("methods.tsv", ("kind", "seed", "width", "height", "target", "method", "antialias", "crc32"), rows)


# --- processor -------------------------------------------------------------------------------------

SETTINGS = [
    "{}",
    '{"size": {"height": 448, "width": 448}}',
    '{"do_rescale": false}',
    '{"do_normalize": false}',
    '{"do_rescale": false, "do_normalize": false}',
    '{"resample": 2, "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}',
    '{"rescale_factor": 0.0078, "image_mean": 1.0, "image_std": 0.3}',
]


def processor():
    import json

    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    rows = []
    pictures = [("waves", 1, 300, 200), ("noise", 2, 64, 91), ("blocks", 3, 500, 333)]
    for settings in SETTINGS:
        for kind, seed, width, height in pictures:
            process = SiglipImageProcessorPil(**json.loads(settings))
            image = Image.fromarray(made(kind, seed, width, height))
            values = process(image, return_tensors="np")["pixel_values"][0].astype(np.float32)
            rows.append((kind, seed, width, height, settings, values.shape[1], crc(values)))
    write("processor.tsv", ("kind", "seed", "width", "height", "settings", "size", "crc32"), rows)

    try:
        from transformers.models.siglip.image_processing_siglip import SiglipImageProcessor
    except ImportError:
        return
    for kind, seed, width, height in pictures:
        image = Image.fromarray(made(kind, seed, width, height))
        pil = SiglipImageProcessorPil()(image, return_tensors="np")["pixel_values"][0]
        torchvision = SiglipImageProcessor()(image, return_tensors="pt")["pixel_values"][0].numpy()
        levels = np.rint((pil + 1) * 127.5) - np.rint((torchvision + 1) * 127.5)
        same = levels == 0
        print(f"{kind} {width}×{height}: torchvision differs from PIL by up to {abs(levels).max():.0f} levels in "
              f"{1 - same.mean():.4%} of values; where the levels agree by up to {abs(pil - torchvision)[same].max():.2e}")


if __name__ == "__main__":
    {"files": files, "resize": resize, "processor": processor}[sys.argv[1]]()

"""Makes goldens/data/: small data sets as Hugging Face's datasets, pyarrow, webdataset and Python's tarfile write them.

    python reference/data_files.py

Made with datasets 5.2.0, pyarrow 26.0.1, webdataset 1.0.2, Pillow 13.0.0, Python 3.11.

Beside each file its examples stand in data.json: texts as the writer was given them, images as the CRC-32 of their bytes.
Made again, a file may differ in bytes (versions and times stand in them); its examples may not.
"""

import io
import json
import pathlib
import tarfile
import zlib

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image

OUT = pathlib.Path(__file__).resolve().parent.parent / "goldens" / "data"


def picture(number):
    buffer = io.BytesIO()
    Image.new("RGB", (3 + number % 3, 2), (number * 40 % 256, 100, 200 - number)).save(buffer, "PNG")
    return buffer.getvalue()


def crc(data):
    return f"{zlib.crc32(data):08x}"


def example(images, prefix, *suffixes):
    return {"images": [crc(image) for image in images], "prefix": prefix, "suffixes": list(suffixes)}


expected = {}


def expect(name, prefix, suffix, examples, image="image"):
    expected[name] = {"image": image, "prefix": prefix, "suffix": suffix, "examples": examples}
    print(f"{name}: {(OUT / name).stat().st_size} bytes, {len(examples)} examples")


def hugging_face():
    """What `Dataset.to_parquet` writes for a data set with an Image feature."""
    count = 7
    images = [picture(i) for i in range(count)]
    rows = {
        "image": [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)],
        "question": [f"what is {i}? é中" for i in range(count)],
        "captions": [[f"caption {i}.{k}" for k in range(1 + i % 3)] for i in range(count)],
        "votes": [[{"answer": f"a{i}{k}", "sure": k == 0} for k in range(2)] for i in range(count)],
        "n": list(range(count)),
        "score": [i / 8 for i in range(count)],
    }
    features = datasets.Features({
        "image": datasets.Image(),
        "question": datasets.Value("string"),
        "captions": datasets.List(datasets.Value("string")),
        "votes": datasets.List({"answer": datasets.Value("string"), "sure": datasets.Value("bool")}),
        "n": datasets.Value("int32"),
        "score": datasets.Value("float32"),
    })
    dataset = datasets.Dataset.from_dict(rows, features=features)
    dataset.to_parquet(OUT / "hf.parquet", batch_size=3)
    expect("hf.parquet", "answer en {question} {n} {score}", "{captions}", [
        example([images[i]], f"answer en what is {i}? é中 {i} {[0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75][i]}",
                *rows["captions"][i]) for i in range(count)])
    dataset.to_parquet(OUT / "hf-votes.parquet", batch_size=100)
    expect("hf-votes.parquet", "q", "{votes.answer}",
           [example([images[i]], "q", f"a{i}0", f"a{i}1") for i in range(count)])


def lists():
    """Several images a row, absent texts, names of the levels of a list as Spark writes them."""
    count = 4
    images = [picture(i) for i in range(2 * count)]
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({
        "images": pa.array([[{"bytes": images[2 * i], "path": None}, {"bytes": images[2 * i + 1], "path": "x"}]
                            for i in range(count)], pa.list_(image_type)),
        "prefix": pa.array([f"p{i}" for i in range(count)]).dictionary_encode(),
        "suffix": pa.array([["a"], ["b", "c"], ["d", "e", "f"], ["g"]], pa.list_(pa.string())),
    })
    pq.write_table(table, OUT / "lists.parquet", use_compliant_nested_type=False)
    expect("lists.parquet", None, None,
           [example(images[2 * i:2 * i + 2], f"p{i}", *table["suffix"][i].as_py()) for i in range(count)], image="images")


def pages():
    """Bytes without a struct, pages of version 2, many small pages, nothing compressed, unsigned and 64 bits."""
    count = 120
    images = [picture(i) for i in range(count)]
    table = pa.table({
        "image": pa.array(images, pa.binary()),
        "prefix": pa.array([f"p{i}" * (i % 5) for i in range(count)]),
        "suffix": pa.array([2**64 - 1 - i for i in range(count)], pa.uint64()),
    })
    pq.write_table(table, OUT / "pages.parquet", data_page_version="2.0", data_page_size=600, write_batch_size=5,
                   compression="none", use_dictionary=False)
    expect("pages.parquet", None, None,
           [example([images[i]], f"p{i}" * (i % 5), str(2**64 - 1 - i)) for i in range(count)])


def refused():
    table = pa.table({"image": pa.array([picture(0)], pa.binary()), "prefix": ["p"], "suffix": ["s"]})
    for codec in ("zstd", "gzip"):
        pq.write_table(table, OUT / f"{codec}.parquet", compression=codec)


def tars():
    images = [picture(i) for i in range(4)]
    with webdataset.TarWriter(str(OUT / "webdataset.tar"), encoder=True, mtime=0) as writer:
        for i, image in enumerate(images):
            writer.write({"__key__": f"train/{i:04}", "png": image, "json": {"prefix": f"p{i}", "id": i},
                          "suffix": f"s{i}\n".encode(), "npy": b"\x93NUMPY"})
    expect("webdataset.tar", None, None, [example([images[i]], f"p{i}", f"s{i}") for i in range(4)])

    for name, kind in (("pax", tarfile.PAX_FORMAT), ("gnu", tarfile.GNU_FORMAT)):
        with tarfile.open(OUT / f"{name}.tar", "w", format=kind) as tar:
            folder = tarfile.TarInfo("../../é")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for i in range(2):
                # Longer than a header has room for, and with a path that nobody must follow.
                key = "../../é/" + "x" * 150 + f"/{i}"
                for ending, data in (("0.png", images[2 * i]), ("1.PNG", images[2 * i + 1]), ("txt", f"é{i}".encode())):
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        expect(f"{name}.tar", "caption en", "{txt}",
               [example(images[2 * i:2 * i + 2], "caption en", f"é{i}") for i in range(2)])


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    hugging_face()
    lists()
    pages()
    refused()
    tars()
    # An example a line.
    dump = lambda value: json.dumps(value, ensure_ascii=False)
    files = [dump(name) + ": " + dump(file)[:-2].replace('"examples": [', '"examples": [\n ').replace("}, {", "},\n {") + "\n]}"
             for name, file in expected.items()]
    (OUT / "data.json").write_text("{" + ",\n".join(files) + "}\n")

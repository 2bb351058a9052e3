"""Makes goldens/tokenizer/: small tokenizers, and what the Python package that reads each says.

    python reference/tokenizer_goldens.py        (sentencepiece 0.2.3, tokenizers 0.23.3, transformers 5.23.0, pillow)

strings.json       the table from which both sides generate the same 10,000 strings (see `strings`)
NAME.model|json    a tokenizer; NAME.expected.json what it gives:
                   `ids`, `text`: one hash for ten strings (ids; decoded ids), `random`: one for ten lists of
                   random ids, decoded; `examples`: fifty strings in full
prompts.json       twelve prompts through transformers' PaliGemmaProcessor, with the tokenizer of PaliGemma 1
                   (a post-processor adds BOS) and of PaliGemma 2 (none does)

gemma.model        as Gemma's: BPE, identity, byte fallback, digits split, runs of spaces and newlines,
                   <loc> and <seg>
bare.model         the same without <loc> and <seg>, which are appended as big_vision does; some of its
                   pieces are marked unused, some have equal scores, some hold a user-defined symbol
table.model        dummy prefix, extra spaces removed, a normalisation table, no byte fallback
gemma.json         gemma.model as a tokenizer.json of transformers' GemmaTokenizer, with <image>
trained.json       trained by `tokenizers`; <loc> and <seg> are ordinary pieces that no merge reaches
A file name after the command makes the expected.json of that tokenizer alone, beside the file.
"""

import io
import json
import os
import pathlib
import random
import sys
import tempfile

import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

OUT = pathlib.Path(__file__).parent.parent / "goldens" / "tokenizer"
MASK = (1 << 64) - 1
LOC = [f"<loc{i:04d}>" for i in range(1024)]
SEG = [f"<seg{i:03d}>" for i in range(128)]

SENTENCES = """
the cat sat on the mat and looked at a red car in the street
two people standing next to a bicycle near the beach on a sunny day
caption en answer en what color is the bus? detect cat ; dog segment left eye ocr
In 2024, 1,234 people paid $56.78 for 90 tickets; see http://example.org/a?b=c&d=e_f
def f(x):\treturn {"a": [x, x**2]}  # comment
der schnelle braune Fuchs springt über den faulen Hund, größer, Straße
un garçon mange une pomme près de la fenêtre où l'été s'achève
el niño pequeño está jugando con el perro en el jardín mañana
быстрая коричневая лиса прыгает через ленивую собаку на улице
η γρήγορη καφέ αλεπού πηδά πάνω από το τεμπέλικο σκυλί
הכלב יושב על הספסל ליד הבית הלבן
القط يجلس على السجادة الحمراء في الغرفة
बिल्ली चटाई पर बैठी है और बाहर देख रही है
แมวนั่งอยู่บนเสื่อสีแดงข้างหน้าต่าง
一只猫坐在红色的垫子上 看着窗外的街道
赤いマットの上に猫が座っていて、窓の外を見ている
고양이가 빨간 매트 위에 앉아서 창밖을 보고 있다
con mèo ngồi trên tấm thảm đỏ cạnh cửa sổ
aaaa aaa aa a aaaaaaa abab ababab abc abcabc xyxyxyx zzzzzzzzzz
""".strip().split("\n")

FRAGMENTS = (
    sorted({w for s in SENTENCES for w in s.split(" ")})
    + [" " + w for w in "the cat car dog street bicycle answer caption".split()]
    + [" ", "  ", "   ", "\n", "\n\n", "\n \n", "\t", "\r\n", " \u2581", "\u2581", "\u2581\u2581", "\u00a0", "\u3000", "\u200b", "\u200d", "\ufeff"]
    + ["0", "7", "42", "007", "3.14159", "12,345", "१२३", "٣٤", "½", "²", "\ufb01", "\u212b", "A\u030a", "e\u0301", "ｱｲｳ", "ＡＢＣ", "①", "…", "—", "’", "“”"]
    + ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷", "👍🏽", "❤️", "𝔸", "𐍈", "\U0010ffff", "\x00", "\x01", "\x7f", "\ufffd", "\ue000"]
    + ["<loc0000>", "<loc1023>", "<loc0512>", "<seg000>", "<seg127>", "<loc0001><loc0002><loc0003><loc0004>", "<loc", "<loc1024>", "<loc12>", "loc0001>", "<seg128>", "<seg1>", "<<loc0007>> ", "<0x41>", "<unused3>", "< "]
    + [" ; ", "; ", "?", "!", ".", ",", "(", ")", "[", "]", "{", "}", "\\", "/", "'", '"', "`", "~", "@", "#", "$", "%", "^", "&", "*", "+", "=", "|"]
)
RANGES = [[0x20, 0x7E], [0x20, 0x7E], [0xA1, 0x17F], [0x370, 0x52F], [0x5D0, 0x6FF], [0x900, 0x97F], [0xE01, 0xE5B],
          [0x1E00, 0x1FFF], [0x2000, 0x206F], [0x2190, 0x25FF], [0x3041, 0x30FF], [0x4E00, 0x9FFF], [0xAC00, 0xD7A3],
          [0xFB00, 0xFEFF], [0xFF01, 0xFFEF], [0x1F300, 0x1FAFF], [0x10000, 0x1FFFF], [0x20000, 0x2A6DF]]
RUNS = [" ", "\n", "a", "1", "\u2581", "ab", "é", "😀", "\t"]


class Random:
    """xorshift64; tests/it/tokenizer.rs has the same."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        s = self.state
        s ^= (s << 13) & MASK
        s ^= s >> 7
        s ^= (s << 17) & MASK
        self.state = s
        return (s >> 32) % n


def strings(count=10_000):
    r = Random(0x9E3779B97F4A7C15)
    for _ in range(count):
        text = ""
        for _ in range(1 + r.below(12)):
            kind = r.below(8)
            if kind == 0:
                low, high = RANGES[r.below(len(RANGES))]
                text += chr(low + r.below(high - low + 1))
            elif kind == 1:
                run = RUNS[r.below(len(RUNS))]
                text += run * (1 + r.below(40))
            elif kind < 5:
                text += FRAGMENTS[r.below(len(FRAGMENTS))]
            else:
                text += FRAGMENTS[r.below(len(FRAGMENTS))] + " "
        yield text


def random_ids(vocab_size, byte0, count=2_000):
    r = Random(0xD1B54A32D192ED03)
    for _ in range(count):
        ids = []
        for _ in range(1 + r.below(16)):
            # Half of them bytes, of which half lead or go on a character: broken and whole ones.
            kind = r.below(4)
            if byte0 is None or kind < 2:
                ids.append(r.below(vocab_size))
            elif kind == 2:
                ids.append(byte0 + 0x80 + r.below(0x80))
            else:
                char = chr(0xA0 + r.below(0x2000)).encode()
                ids.extend(byte0 + b for b in char[: 1 + r.below(3)])
        yield ids


def fnv(data, h=0xCBF29CE484222325):
    for b in data:
        h = ((h ^ b) * 0x100000001B3) & MASK
    return h


def blocks(items, size=10):
    """One hash for ten items, so that a failure is found and the file stays small."""
    items = list(items)
    out = []
    for i in range(0, len(items), size):
        h = 0xCBF29CE484222325
        for item in items[i : i + size]:
            h = fnv(item + b"\xff\xff\xff\xff", h)
        out.append(f"{h:016x}"[8:])
    return " ".join(out)


def as_bytes(ids):
    return b"".join(i.to_bytes(4, "little") for i in ids)


def with_loc_and_seg(model):
    """big_vision's rule: a known name becomes user-defined where it stands, a new one goes to the end."""
    proto = pb.ModelProto.FromString(model)
    at = {p.piece: i for i, p in enumerate(proto.pieces)}
    for name in LOC + SEG:
        new = proto.pieces[at[name]] if name in at else proto.pieces.add()
        new.piece, new.score, new.type = name, 0.0, pb.ModelProto.SentencePiece.USER_DEFINED
    return proto.SerializeToString()


def write(name, data):
    OUT.mkdir(parents=True, exist_ok=True)
    data = data if isinstance(data, bytes) else (json.dumps(data, ensure_ascii=False, indent=0) + "\n").encode()
    (OUT / name).write_bytes(data)


def expect(path):
    if path.suffix == ".model":
        sp = spm.SentencePieceProcessor(model_proto=with_loc_and_seg(path.read_bytes()))
        encode, decode, size = sp.encode, sp.decode, sp.vocab_size()
        id_of = lambda piece: None if sp.piece_to_id(piece) == sp.unk_id() else sp.piece_to_id(piece)
    else:
        t = Tokenizer.from_file(str(path))
        t.add_tokens([AddedToken(n, normalized=False) for n in LOC + SEG if n not in {a.content for a in t.get_added_tokens_decoder().values()}])
        encode = lambda s: t.encode(s, add_special_tokens=False).ids
        decode = lambda ids: t.decode(ids, skip_special_tokens=True)
        id_of, size = t.token_to_id, t.get_vocab_size()
    texts = list(strings())
    ids = [encode(s) for s in texts]
    byte0 = id_of("<0x00>")
    every = len(texts) // 50
    return {
        "script": "reference/tokenizer_goldens.py",
        "vocab_size": size,
        "byte0": byte0,
        "special": {n: id_of(n) for n in ["<pad>", "<eos>", "<bos>", "<image>", "<loc0000>", "<loc1023>", "<seg000>", "<seg127>"]},
        "newline": encode("\n"),
        "ids": blocks(as_bytes(i) for i in ids),
        "text": blocks(decode(i).encode() for i in ids),
        "random": blocks(decode(i).encode() for i in random_ids(size, byte0)),
        "examples": [[s, " ".join(map(str, i))] for s, i in zip(texts[::every], ids[::every])],
    }


def corpus():
    rng = random.Random(0)
    for s in SENTENCES:
        yield s
    for _ in range(3000):
        words = rng.choice(SENTENCES).split(" ")
        rng.shuffle(words)
        yield rng.choice([" ", " ", "  ", "\t"]).join(words)


def train(user_defined, **options):
    out = io.BytesIO()
    options = dict(byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False,
                   normalization_rule_name="identity") | options
    spm.SentencePieceTrainer.train(
        sentence_iterator=corpus(), model_writer=out, model_type="bpe", split_digits=True, pad_id=0, eos_id=1, bos_id=2,
        unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", user_defined_symbols=user_defined,
        hard_vocab_limit=False, allow_whitespace_only_pieces=True, num_threads=1, minloglevel=2, **options)
    proto = pb.ModelProto.FromString(out.getvalue())
    # Where it was trained is nobody's business, and makes the file differ from one machine to the next.
    del proto.trainer_spec.input[:]
    del proto.trainer_spec.user_defined_symbols[:]
    proto.trainer_spec.ClearField("model_prefix")
    return proto


RUN_PIECES = ["\n" * n for n in range(1, 12)] + ["\u2581" * n for n in range(2, 12)]


def merges_of(scores):
    """What transformers' converters do: every way to split a piece into two others, best piece first."""
    out = []
    for piece, score in scores.items():
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in scores and piece[i:] in scores]
        out += [(score, left, right) for left, right in splits]
    out.sort(key=lambda m: (-m[0], len(m[1]), len(m[2])))
    return [(left, right) for _, left, right in out]


def main():
    if len(sys.argv) > 1:
        path = pathlib.Path(sys.argv[1])
        out = path.with_name(f"{path.stem}-{path.suffix[1:]}.expected.json")
        out.write_text(json.dumps(expect(path), ensure_ascii=False, indent=0))
        return
    write("strings.json", {"script": "reference/tokenizer_goldens.py", "fragments": FRAGMENTS, "ranges": RANGES, "runs": RUNS})

    gemma = train(["<mask>"] + RUN_PIECES + LOC + SEG, vocab_size=2500)
    write("gemma.model", gemma.SerializeToString())

    bare = train(["<mask>", "\n", "\n\n", "\u2581\u2581", "ab"], vocab_size=1300)
    kinds = pb.ModelProto.SentencePiece
    rng = random.Random(1)
    long = [p for p in bare.pieces if p.type == kinds.NORMAL and len(p.piece) > 1]
    single = [p for p in bare.pieces if p.type == kinds.NORMAL and len(p.piece) == 1]
    for p in rng.sample(long, 60) + rng.sample(single, 12):
        p.type = kinds.UNUSED
    for p in rng.sample(long, 120):
        p.score = -100.0
    # Pieces that would be merged if a user-defined symbol were one more piece.
    for p, text in zip(long[-3:], ["abc", "cab", "\u2581\u2581\u2581"]):
        p.piece, p.score, p.type = text, 0.0, kinds.NORMAL
    write("bare.model", bare.SerializeToString())

    with tempfile.TemporaryDirectory() as folder:
        rules = {"\ufb01": "fi", "\u2460": "1", "\u2026": "...", "\u212b": "\u00c5", "\u00bd": "1/2", "\u00a0": " ",
                 "\u3000": " ", "\t": " ", "\n": " ", "\u2019": "'", "e\u0301": "\u00e9", "\uff21": "A", "\u200b": "",
                 "\U0001f44d\U0001f3fd": "thumb", "den": "DEN", "de": "D"}
        path = pathlib.Path(folder) / "rules.tsv"
        hexed = lambda s: " ".join(f"{ord(c):x}" for c in s)
        path.write_text("".join(f"{hexed(a)}\t{hexed(b)}\n" for a, b in rules.items()))
        table = train(["<mask>", "den x"], vocab_size=900, byte_fallback=False, add_dummy_prefix=True,
                      remove_extra_whitespaces=True, normalization_rule_tsv=str(path), normalization_rule_name="user_defined")
        table.normalizer_spec.ClearField("normalization_rule_tsv")
    write("table.model", table.SerializeToString())

    from transformers import GemmaTokenizer

    reserved = (kinds.CONTROL, kinds.UNKNOWN, kinds.BYTE)
    scores = {p.piece: p.score for p in gemma.pieces if p.type not in reserved and p.piece not in LOC + SEG + ["<mask>"]}
    vocab = {p.piece: i for i, p in enumerate(gemma.pieces)}
    with tempfile.TemporaryDirectory() as folder:
        t = GemmaTokenizer(vocab=vocab, merges=merges_of(scores), add_bos_token=True)
        t.add_tokens([AddedToken(n, normalized=False) for n in RUN_PIECES if n[0] == "\n"])
        t.add_special_tokens({"additional_special_tokens": [AddedToken("<image>", normalized=False, special=True)]})
        t.add_tokens(LOC + SEG)
        t.save_pretrained(folder)
        parsed = json.loads((pathlib.Path(folder) / "tokenizer.json").read_text())
        assert parsed["post_processor"], "PaliGemma 1's file adds BOS"
        (OUT / "gemma.json").write_text(json.dumps(parsed, ensure_ascii=False, separators=(",", ":")))
        write("prompts.json", prompts(folder, parsed))

    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    t.normalizer = normalizers.Replace(" ", "\u2581")
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Digits(individual_digits=True)])
    t.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=800, show_progress=False, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"]))
    parsed = json.loads(t.to_str())
    for piece in [f"<0x{b:02X}>" for b in range(256)] + LOC + SEG + ["<image>"]:
        parsed["model"]["vocab"][piece] = len(parsed["model"]["vocab"])
    parsed["added_tokens"].append(parsed["added_tokens"][0] | {"id": parsed["model"]["vocab"]["<image>"], "content": "<image>"})
    (OUT / "trained.json").write_text(json.dumps(parsed, ensure_ascii=False, separators=(",", ":")))

    for path in sorted([*OUT.glob("*.model"), *OUT.glob("gemma.json"), *OUT.glob("trained.json")]):
        write(f"{path.stem}-{path.suffix[1:]}.expected.json", expect(path))


def prompts(folder, parsed):
    from PIL import Image
    from transformers import AutoTokenizer, PaliGemmaProcessor, SiglipImageProcessor

    texts = ["", "caption en", "answer en where is the cow standing?", "ocr", "detect cat ; dog", "segment left eye",
             " leading and trailing space ", "two  spaces", "answer ja 猫はどこですか？", "caption <loc0001><loc0002><loc0003><loc0004>",
             "line one\nline two", "😀 1234 Straße"]
    out = {"script": "reference/tokenizer_goldens.py", "texts": texts}
    for name, add_bos in [("paligemma1", True), ("paligemma2", False)]:
        with tempfile.TemporaryDirectory() as other:
            changed = dict(parsed) if add_bos else dict(parsed, post_processor=None)
            config = json.loads((pathlib.Path(folder) / "tokenizer_config.json").read_text()) | {"add_bos_token": add_bos}
            (pathlib.Path(other) / "tokenizer.json").write_text(json.dumps(changed))
            (pathlib.Path(other) / "tokenizer_config.json").write_text(json.dumps(config))
            images = SiglipImageProcessor(size={"height": 14, "width": 14}, image_seq_length=1)
            images.image_seq_length = 1
            processor = PaliGemmaProcessor(images, AutoTokenizer.from_pretrained(other))
            image = Image.new("RGB", (14, 14))
            out[name] = [" ".join(map(str, processor(images=image, text="<image>" + s)["input_ids"][0])) for s in texts]
    return out


if __name__ == "__main__":
    main()

"""Makes goldens/tokenizer/training.json: what SentencePiece's own trainer makes of texts with Gemma's options.

    python reference/tokenizer_training.py [LINES]        (sentencepiece 0.2.3)

The texts are captions, questions and answers of the playground in four languages. LINES, a JSONL of
`paligemma playground`, replaces those that the file holds. `pieces` are those behind the bytes, in order, without <loc> and
<seg>; `ids` are each text's with our order: six, the 256 bytes, the pieces.
"""

import io
import json
import pathlib
import sys

import sentencepiece as spm

FILE = pathlib.Path(__file__).resolve().parent.parent / "goldens" / "tokenizer" / "training.json"
NUM_PIECES = 420

if len(sys.argv) > 1:
    lines = [json.loads(line) for line in open(sys.argv[1])]
    texts = []
    for line in lines:
        suffix = line["suffix"] if isinstance(line["suffix"], str) else line["suffix"][0]
        texts += [text for text in (line["prefix"], suffix) if "<loc" not in text]
    # Now and then two spaces, and alphabets side by side.
    texts += ["two  spaces", "a   b", "猫 кошка star", "aaaa aaa aaaaaaa", "x=1;y=23,456.7"]
else:
    texts = json.loads(FILE.read_text())["texts"]

out = io.BytesIO()
spm.SentencePieceTrainer.train(
    sentence_iterator=iter(texts), model_writer=out, model_type="bpe", vocab_size=6 + 256 + NUM_PIECES, byte_fallback=True,
    split_digits=True, normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True, character_coverage=1.0, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>",
    eos_piece="<eos>", bos_piece="<bos>", user_defined_symbols=["<mask>", "\n"], num_threads=1, minloglevel=2,
)
sp = spm.SentencePieceProcessor(model_proto=out.getvalue())
pieces = [sp.id_to_piece(i) for i in range(262, sp.vocab_size())]
ids = [" ".join(map(str, sp.encode(text))) for text in texts]
FILE.write_text(json.dumps({"texts": texts, "pieces": pieces, "ids": ids}, ensure_ascii=False, indent=0) + "\n")

"""Makes goldens/eval/: what pycocoevalcap makes of captions, and pycocotools of boxes.

    python reference/eval_goldens.py    # needs Java for pycocoevalcap's tokenizer

Made with pycocoevalcap 1.2 (Stanford CoreNLP 3.4.1), pycocotools 2.0.11, numpy 2.4.6.
"""

import json
import pathlib
import random

import numpy as np
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

OUT = pathlib.Path(__file__).resolve().parent.parent / "goldens" / "eval"

TEXTS = """
a man can't ride the dog's bike, can he?
There's a boy's toy; it isn't John's (or Mary's) [old] {thing}.
She said "hello" and 'goodbye' to them.
The well-known t-shirt cost $5.50, i.e. about 3/4 of 1,000.50 euros.
Mr. Smith and Dr. Jones of the U.S. went at 10:30 a.m. on 1/2/2004.
I cannot, gonna, gotta, wanna, lemme, gimme go -- now... ok!!! really?!
and/or black/white colour grey favourite theatre A&B AT&T rock 'n' roll
visit http://www.example.com/a?b=c or mail me@x.org :-) #1 @home 50% off
a two-story red-and-white striped building - with windows
it's we've they'd I'm you'll o'clock 'em 'tis y'all d'oh
½ cup £5 €20 100km 3D 2x4 12" pizza 5'10"
l'étoile orange rayée d'un côté, c'est « bien »
une étoile jaune à gauche d'une tasse bleue sur fond vert
deux cœurs rouges à pois et un anneau noir dans la neige
ein gestreifter roter Stern vor grünem Hintergrund
eine weiße Katze links von einem blauen Auto auf einer Wiese
¿De qué color es la estrella? ¡Hola!
dos paraguas naranjas de lunares a la izquierda de un pájaro
Hello—world – dash … ellipsis “quotes” ‘single’ it’s don’t
<b>bold</b> &amp; &lt; a*b a_b C++ C# .NET 1st 2nd 1990s '90s
x=y a~b ^ | +3 -5 10-20 1-800-555-1234
A'abc B'abc c'abc d'abc I'abc O'Neil D'Angelo L'Oreal e'abc
j'ai n'est qu'il s'il t'aime m'a d'en l'eau lorsqu'on
abc'def abe'abc hawai'i ma'am cont'd c'mon nor'easter e'er ev'ry li'l ol' somethin' goin'
don't won't isn't DON'T Don't cant dont couldn't've shouldn't ain't mustn't
dogs' dogs'. James's the boss's 's it's. it's, he'd've they'll I'd've we're
'twas 'em 'n' 'til 'till 'cause '80s '90
x-ray t-shirt black-and-white 3-d 2-year-old one- -two t--x t---x a - b
red/white red/white/blue a/b/c/d w/ w/out n/a 24/7 km/h either/ or
1.5 1,000 .5 0.5. 1.5.2 10:30:15 1/2 3-4 1-2-3 5% 5th 12am 12-inch 3" #5 #hash @user $5 5$ US$ 20s
3.14.15 100,00 1,2,3 a,b a.b a.b.c word.word word.Next end.Next
Mr. Mrs. Ms. Dr. Prof. vs. etc. al. dept. est. sq. approx. fig. min. max.
a.m. p.m. U.S. U.K. u.s. U.S.A. e.g. i.e. J.R.R. Tolkien
Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec. Mon. Tue. Wed. Inc. Co. Corp. Ltd. Bros.
jan. 5 st. mary inc. and co. Then dr. Who, no. 5 no.
end of line etc.
Ill. ill. ind. mass. Mass. miss. wash. Wash. tex. la. pa. del. ore. md.
hello... hello.. hello . . . wait.... a…b
what?? what!! what?! what!? ?! !! ! ? !!!
(a) [b] {c} <d> </a> < > << >> <3 :) :-) ;-) :( :D :P =) =D
"a" ''b'' ``c`` "a's"
a&b R&B a & b Q&A &quot;
www.x.com x.com x.com/abc foo@bar.com google.com
_a_ a__b *a* **a** a+b a=b ~ / // = * % & @ #
¼ ¾ ¥ 5€ 20° ° × ÷ ± © ® ™ •
é ñ ü ß café naïve jalapeño señor straße
Cannot CANNOT dunno whaddya
- -- --- ---- – — ― a–b a—b 1–2 pre–post
猫 在 桌子 上 кошка на столе γάτα
123abc abc123 a1b2 1a 4x4 mp3 h2o
C++ C# F# A+ B- A* 4+ 18+
tv-set TV's TVs tv. USA's "USA" (USA) USA, USA;
a,b-c 1,000-foot x.y-z U.S.-based non-u.s. co-op. e-mail: mother-in-law's man's-hat
end-of-line- -start a-1 1-a a-é é-a naïve-looking t-shirt/hat
hi:Dog time:dog 3:4 a;b a!b a?b (a)b b(a)
é's é't don’t’ve
red..blue red...blue red.5 5.red 5.5.red .red red. .5red
1st-2nd 1/2-inch 1/2" 3/4s 1/a a/1 1/2/3/4
$5-a-day $.50 $1,000,000 c$ a$5 US$5 HK$
10% %10 10%s 5ft 5-ft 6ft.2 12:30pm 12.30pm 3p.m.
b&w B&W P&O's AT&T's 1+1=2
who's whos who'd who'll what're 1950's 50s' '50s it'S IT'S CAN'T I'LL
shan't n't isn't, hasn't-been
tv/dvd/vcr/radio black-and-white/grey a/b-c-d/e x/y. x/ /y //
e.g., i.e., a.m., etc., u.s., vs., etc.) (etc. Then
STOP. STOP. Go GO! go.Go go. go
A man riding a wave on top of a surfboard.
Two dogs are playing with a frisbee in the park
A close-up of a plate of food with broccoli, carrots & rice .
a bathroom with a toilet, sink and mirror .
A little girl in a pink dress holding an umbrella
The man's t-shirt says "I ♥ NY".
An old-fashioned train traveling down the tracks...
A street sign that reads "Main St." and "5th Ave."
A black-and-white photo of a 1950's car.
People sit on a park bench (in the rain) watching TV.
a red 2-door car parked at 10 o'clock
This isn't what it looks like: it's a cat!
A bus #42 drives by St. Paul's cathedral.
Mt. Everest seen at 6 a.m. from the U.S. base-camp
three zebras, two giraffes; one elephant
A plane flies over N.Y. city
ladies' shoes and men's hats
A kid's birthday party w/ balloons
a sign saying STOP!!
Man in a suit and tie - talking on a cell phone
a cake that says 'Happy Birthday'
a large, brown, furry, teddy-bear
a pizza with pepperoni/cheese on it
a woman (wearing glasses) sits at a table.
close up of an orange's peel
a 3-year-old's toys
there are 12 eggs, 1,500 ants and 0.5 liters of milk.
an airplane (a 747) on the run-way
""".strip().split("\n")


def tokens(texts):
    """Each text by itself: the tokenizer looks at how the next line begins."""
    apart = {0: [{"caption": line} for text in texts for line in (text, "x")]}
    return PTBTokenizer().tokenize(apart)[0][::2]


def ptb():
    lines = [f"{text}\t{' '.join(words.split())}" for text, words in zip(TEXTS, tokens(TEXTS))]
    (OUT / "ptb.tsv").write_text("\n".join(lines) + "\n")


def cider():
    dice = random.Random(5)
    things, colours = ["star", "mug", "house", "tree", "cat"], ["red", "blue", "dark-green", "black"]

    def caption():
        parts = [f"a {dice.choice(colours)} {dice.choice(things)}" for _ in range(dice.randint(1, 3))]
        return dice.choice(["", "There is ", "one sees "]) + ", ".join(parts) + dice.choice(["", ".", " on a man's table!"])

    pictures = []
    for i in range(30):
        references = [caption() for _ in range(dice.randint(1, 5))]
        answer = dice.choice([caption(), dice.choice(references), "", "a a a a red\nred star"])
        pictures.append({"answer": answer, "references": references})
    gts = {i: [{"caption": c} for c in one["references"]] for i, one in enumerate(pictures)}
    res = {i: [{"caption": one["answer"]}] for i, one in enumerate(pictures)}
    mean, scores = Cider().compute_score(PTBTokenizer().tokenize(gts), PTBTokenizer().tokenize(res))
    for one, score in zip(pictures, scores):
        one["score"] = float(score)
    (OUT / "cider.json").write_text(json.dumps({"mean": float(mean), "pictures": pictures}, indent=0) + "\n")


def average_precision():
    dice = random.Random(6)
    pictures, images, annotations, found = [], [], [], []
    for i in range(24):
        images.append({"id": i, "width": 300, "height": 300})
        truths, detections = [], []
        for _ in range(dice.randint(0, 6)):
            x, y, w, h = (dice.randint(0, 600) / 4 for _ in range(4))
            w, h = w + 4, h + 4
            label, crowd = dice.randint(0, 2), int(dice.random() < 0.1)
            area = round(w * h * dice.choice([1.0, 0.6]), 3)
            truths.append([label, x, y, x + w, y + h, area, crowd])
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i, "category_id": label, "bbox": [x, y, w, h], "area": area, "iscrowd": crowd}
            )
            for _ in range(dice.choice([0, 1, 1, 2, 4])):
                dx, dy, dw, dh = (dice.randint(-20, 20) / 200 for _ in range(4))
                box = [round(v, 2) for v in (x + dx * w, y + dy * h, w * (1 + dw), h * (1 + dh))]
                # Few different scores, so that some are equal; now and then another label.
                score = dice.randint(1, 12) / 16
                other = label if dice.random() < 0.85 else dice.randint(0, 3)
                detections.append([other, box[0], box[1], box[0] + box[2], box[1] + box[3], score])
                found.append({"image_id": i, "category_id": other, "bbox": box, "score": score})
        pictures.append({"truths": truths, "detections": detections})
    coco = COCO()
    coco.dataset = {"images": images, "annotations": annotations, "categories": [{"id": i} for i in range(3)]}
    coco.createIndex()
    run = COCOeval(coco, coco.loadRes(found), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    stats = [float(v) for v in np.asarray(run.stats)]
    (OUT / "ap.json").write_text(json.dumps({"stats": stats, "pictures": pictures}).replace('{"truths"', '\n{"truths"') + "\n")


OUT.mkdir(exist_ok=True)
ptb()
cider()
average_precision()

"""Small benchmarks of our own content in the exact schema of the published ones: TSV, parquet and `save_to_disk`.

python -m tests.stages.benchmarks.fixtures FOLDER writes them; tests write them into temporary folders. Nothing is
copied from the published sets (several may not be): questions are invented, images are 8 x 8 pixels.
"""

import base64
import csv
import io
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stages.corpora.rows import Question, make_canonical_row, make_question
from stages.tiny.benchmarks.write import write_world

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Rows = list[dict[str, Any]]


def picture(name: str, mode: str = "RGB", form: str = "PNG", side: int = 8) -> bytes:
    """An image whose pixels follow from its name."""
    image = Image.frombytes("RGB", (side, side), random.Random(name).randbytes(3 * side * side))
    file = io.BytesIO()
    image.convert(mode).save(file, form)
    return file.getvalue()


def encoded(name: str, **how: Any) -> str:
    """The same as base64, as TSV files hold it."""
    return base64.b64encode(picture(name, **how)).decode()


def struct(name: str, **how: Any) -> dict[str, Any]:
    """The same as parquet files hold it."""
    return {"bytes": picture(name, **how), "path": f"{name}.png"}


def choices(*texts: str, count: int = 4) -> dict[str, str]:
    """Option columns; those without a text are empty cells."""
    return {chr(65 + place): (texts[place] if place < len(texts) else "") for place in range(count)}


def rotated(base: int, texts: Sequence[str], gold: str, question: str, image: str, **more: str) -> Rows:
    """A question of MMBench in all its rotations; rotated rows share the image of the first by its index."""
    rows = []
    for turn in range(len(texts)):
        turned = [*texts[turn:], *texts[:turn]]
        index = base + turn * 1_000_000
        rows.append(
            {
                "index": index,
                "question": question,
                "hint": "",
                **choices(*turned),
                "answer": chr(65 + turned.index(gold)),
                "category": "counting",
                "l2-category": "finegrained_perception",
                "source": "ours",
                "split": "dev",
                "comment": "",
                **more,
                "image": image if turn == 0 else str(base),
            }
        )
    return rows


def mmbench(language: str) -> Rows:
    """A question of four options and one of two; texts "None" and "nan" are options."""
    first, second = ("How many birds?", "Is it day?") if language == "en" else ("图中有几只鸟？", "现在是白天吗？")
    big = encoded(f"mmbench {language}", side=600)  # above 1 MB in base64
    return [
        *rotated(5, ("one", "two", "None", "nan"), "two", first, big, hint='A hint with a\ttab and\na "new" line'),
        *rotated(
            7, ("yes", "no"), "no", second, encoded("day"), category="scene", **{"l2-category": "coarse_perception"}
        ),
    ]


_LETTER_ONLY = "Please answer directly with only the letter of the correct option and nothing else."


def tsv() -> dict[str, Rows]:
    """Rows of every TSV file, by its name."""
    ai2d = [
        {
            "index": 100,
            "question": "Which label?",
            **choices("a", "b", "c", "None"),
            "answer": "D",
            "category": "food web",
            "abcLabel": "False",
            "image": encoded("a", mode="RGBA"),
        },
        {
            "index": 101,
            "question": "Which\tstage\nis next?",
            **choices("7", "1.50", "007"),
            "answer": "B",
            "category": "life cycle",
            "abcLabel": "True",
            "image": encoded("b", mode="P"),
        },
    ]
    chart = [
        {"index": 0, "question": "How many?", "answer": "100", "split": "test_human", "image": encoded("c0")},
        {
            "index": 1,
            "question": "Which share?",
            "answer": "10%",
            "split": "test_augmented",
            "image": encoded("c1", form="JPEG"),
        },
        {
            "index": 2,
            "question": "Which colours?",
            "answer": "['Blue', 'Red']",
            "split": "test_human",
            "image": encoded("c2"),
        },
        {"index": 3, "question": "How many more?", "answer": "0", "split": "test_augmented", "image": encoded("c3")},
    ]
    skills = "['algebraic reasoning', 'arithmetic reasoning']"
    vista = [
        {
            "index": 1,
            "question": "Hint: letter.\nQuestion: share?\nChoices:\n(A) 3/11\n(B) 8/11",
            "answer": "8/11",
            "answer_option": "B",
            "choices": "['3/11', '8/11']",
            "question_type": "multi_choice",
            "answer_type": "text",
            "task": "math word problem",
            "skills": skills,
            "image": encoded("v1"),
        },
        {
            "index": 2,
            "question": "How many?",
            "answer": "14",
            "answer_option": "",
            "choices": "",
            "question_type": "free_form",
            "answer_type": "integer",
            "task": "geometry",
            "skills": skills,
            "image": encoded("v2"),
        },
    ]
    mmmu = [
        {
            "index": 1,
            "question": "See <image 2> and <image 1>.",
            **choices("x", "<image 2>", "z", count=9),
            "answer": "B",
            "category": "Art",
            "split": "validation",
            "topic_difficulty": "Easy",
            "image": str([encoded("m1"), encoded("m2")]),
        },
        {
            "index": 2,
            "question": "Which two values?",
            **choices(count=9),
            "answer": "['24/7', '3.429']",
            "category": "Chemistry",
            "split": "validation",
            "topic_difficulty": "Hard",
            "image": str([encoded("m3")]),
        },
        {
            "index": 3,
            "question": "Not counted.",
            **choices("a", "b", count=9),
            "answer": "A",
            "category": "Art",
            "split": "dev",
            "topic_difficulty": "Easy",
            "image": str([encoded("m4")]),
        },
    ]
    pro = [
        {
            "index": "test_Art_1",
            "question": "First <image 2>, then <image 1>.",
            **choices(*"abcdefghij", count=10),
            "answer": "J",
            "category": "Art",
            "split": "test",
            "image": str([encoded("p1"), encoded("p2")]),
        }
    ]
    vision = [
        {
            "index": "test_Art_1",
            "question": "placeholder",
            **choices(*"stuvwxyz", count=10),
            "answer": "H",
            "category": "Art",
            "split": "test",
            "image": encoded("p3"),
        }
    ]
    star = [
        {
            "index": n,
            "question": "What is it?",
            **choices("cat", "dog", "bird", "fish"),
            "answer": "ABCD"[n],
            "category": kind,
            "l2_category": f"{kind} {n}",
            "bench": "ours",
            "image": encoded(f"s{n}"),
        }
        for n, kind in enumerate(("coarse perception", "coarse perception", "math", "math"))
    ]
    blink = [
        {
            "index": "val_Counting_1",
            "question": "Which?",
            **choices("the first image", "the second image"),
            "answer": "B",
            "category": "Counting",
            "image": str([encoded("b1"), encoded("b2"), encoded("b3")]),
        }
    ]
    seed = [
        {
            "index": 101669,
            "question": "Where?",
            **choices("left", "right", "up", "down"),
            "answer": "C",
            "category": "Instance Location",
            "image": encoded("seed"),
        }
    ]
    vet = [
        {
            "index": "v1_0",
            "question": "What is x?",
            "answer": "-1<AND>-5",
            "category": "ocr,math",
            "image": encoded("vet"),
        }
    ]
    vet2 = [
        {
            "index": "v2_0",
            "question": "What is x?<IMG><image_0><IMG>and here<IMG><image_1>",
            "answer": "1<OR>2",
            "capability": "rec,seq",
            "image": str([encoded("w0"), encoded("w1")]),
        }
    ]
    world = [
        {
            "index": 0,
            "question": "Where is the car?",
            **choices("left", "right", "ahead"),
            "answer": "A",
            "category": "none",
            "image": encoded("world", form="WEBP"),
        }
    ]
    return {
        "AI2D_TEST": ai2d,
        "AI2D_TEST_NO_MASK": ai2d,
        "ChartQA_TEST": chart,
        "MathVista_MINI": vista,
        "MMBench_DEV_EN": mmbench("en"),
        "MMBench_DEV_CN": mmbench("cn"),
        "MMVet": vet,
        "MMVetV2": vet2,
        "MMMU_DEV_VAL": mmmu,
        "MMMU_Pro_10c": pro,
        "MMMU_Pro_V": vision,
        "MMStar": star,
        "BLINK": blink,
        "SEEDBench_IMG": seed,
        "SEEDBench2_Plus": seed,
        "RealWorldQA": world,
    }


def hub() -> dict[str, tuple[str, Rows]]:
    """Rows of every data set of the hub: benchmark id, path of the shard, rows. Columns of images hold structs."""
    none = {f"image_{n}": None for n in range(3, 8)}
    ai2d = [{"question": "Which?", "options": ["a", "b", "None", "d"], "answer": "2", "image": struct("h1")}]
    chart = [
        {"type": kind, "question": "How many?", "answer": "12", "image": struct(kind)}
        for kind in ("human_test", "augmented_test")
    ]
    meta = {
        "category": "math",
        "context": "",
        "grade": "",
        "img_height": 8,
        "img_width": 8,
        "language": "en",
        "skills": ["geometry reasoning"],
        "source": "ours",
        "split": "testmini",
        "task": "geometry",
    }
    vista = [
        {
            "pid": "1",
            "question": "Which?",
            "image": "images/1.jpg",
            "decoded_image": struct("h2"),
            "choices": ["3/11", "8/11"],
            "unit": None,
            "precision": None,
            "answer": "8/11",
            "question_type": "multi_choice",
            "answer_type": "text",
            "metadata": meta,
            "query": "Which?",
        },
        {
            "pid": "2",
            "question": "How long?",
            "image": "images/2.jpg",
            "decoded_image": struct("h3"),
            "choices": None,
            "unit": "cm",
            "precision": 1.0,
            "answer": "1.2",
            "question_type": "free_form",
            "answer_type": "float",
            "metadata": meta,
            "query": "How long?",
        },
        {
            "pid": "3",
            "question": "Which years?",
            "image": "images/3.jpg",
            "decoded_image": struct("h4"),
            "choices": None,
            "unit": None,
            "precision": None,
            "answer": "[2014, 2016]",
            "question_type": "free_form",
            "answer_type": "list",
            "metadata": meta,
            "query": "Which years?",
        },
    ]
    bench = {
        language: [
            {
                **{key: value for key, value in row.items() if key != "l2-category"},
                "index": str(row["index"]),
                "image": struct(f"bench {row['index']}"),
                **{key: row[key] or "nan" for key in ("hint", "A", "B", "C", "D")},
                "L2-category": row["l2-category"],
            }
            for row in mmbench(language)
            if row["index"] % 1_000_000 == 7  # the question without an option "nan": missing ones have that text there
        ]
        for language in ("en", "cn")
    }
    mmmu = [
        {
            "id": "validation_Art_1",
            "question": "See <image 1> and <image 1>.",
            "options": "['x', '<image 2>']",
            "explanation": "",
            "image_1": struct("h5"),
            "image_2": struct("h6"),
            **none,
            "img_type": "['Photo']",
            "answer": "B",
            "topic_difficulty": "Easy",
            "question_type": "multiple-choice",
            "subfield": "Painting",
        },
        {
            "id": "validation_Chemistry_30",
            "question": "How much?",
            "options": "[]",
            "explanation": "",
            "image_1": struct("h7"),
            "image_2": None,
            **none,
            "img_type": "['Plot']",
            "answer": "['24/7', '3.429']",
            "topic_difficulty": "Hard",
            "question_type": "open",
            "subfield": "Physical",
        },
    ]
    pro = [
        {
            "id": "test_Art_1",
            "question": "First <image 2>, then <image 1>.",
            "options": str(list("abcdefghij")),
            "explanation": "",
            "image_1": struct("h8"),
            "image_2": struct("h9"),
            **none,
            "img_type": "[]",
            "answer": "J",
            "topic_difficulty": "Easy",
            "subject": "Art",
        }
    ]
    vision = [
        {"id": "test_Art_1", "image": struct("h10"), "options": str(list("stuvwxyz")), "answer": "H", "subject": "Art"}
    ]
    star = [
        {
            "index": 0,
            "question": "What is it?\nOptions: A: cat, B: dog, or wolf, C: bird, D: fish",
            "image": struct("h11"),
            "answer": "B",
            "category": "math",
            "l2_category": "geometry",
            "meta_info": {"source": "ours"},
        }
    ]
    blink = [
        {
            "idx": "val_Counting_1",
            "question": "Which?",
            "sub_task": "Counting",
            "image_1": struct("h12"),
            "image_2": struct("h13"),
            "image_3": None,
            "image_4": None,
            "choices": ["one", "two", "three"],
            "answer": "(C)",
            "explanation": "",
            "prompt": "Which?\n(A) one\n(B) two\n(C) three",
        }
    ]
    seed = [
        {
            "question_id": "101669",
            "question": "Where?",
            "choice_a": "left",
            "choice_b": "right",
            "choice_c": "up",
            "choice_d": "down",
            "answer": "C",
            "data_id": "1",
            "data_type": "image",
            "question_type_id": 4,
            "segment": None,
            "image": [struct("h14")],
        },
        {
            "question_id": "v10",
            "question": "What next?",
            "choice_a": "a",
            "choice_b": "b",
            "choice_c": "c",
            "choice_d": "d",
            "answer": "A",
            "data_id": "2",
            "data_type": "video",
            "question_type_id": 10,
            "segment": [0, 1],
            "image": [struct("h15"), struct("h16")],
        },
    ]
    plus = [
        {
            "question_id": "7",
            "question": "Which?",
            "choice_A": "p",
            "choice_B": "q",
            "choice_C": "r",
            "choice_D": "s",
            "answer": "D",
            "data_id": "chart/7.png",
            "question_image_type": "chart",
            "question_image_subtype": "bar",
            "data_source": "ours",
            "data_type": "Image",
            "level": "L1",
            "subpart": "x",
            "version": "v2+",
            "image": struct("h17"),
        }
    ]
    vet = [
        {
            "question_id": "v1_0",
            "question": "What is x?",
            "answer": "-1<AND>-5",
            "capability": "ocr,math",
            "image": struct("h18"),
        }
    ]
    frames = {f"image_{n}": struct(f"f{n}") if n < 2 else None for n in range(18)}
    vet2 = [
        {
            "id": "v2_0",
            "question": "What is x?<IMG><image_0><IMG>and<IMG><image_1>",
            "answer": "line\n1<OR>2",
            "capability": ["rec", "seq"],
            **frames,
        }
    ]
    world = [
        {
            "question": f"Where?\n\nA. left\nB. right\n\n{_LETTER_ONLY}",
            "answer": "B",
            "image_path": "0.webp",
            "image": struct("h19", form="WEBP"),
        },
        {
            "question": "How many? Please answer directly with a single word or number.",
            "answer": "3",
            "image_path": "1.webp",
            "image": struct("h20"),
        },
    ]
    return {
        "ai2d": ("data/test-00000-of-00001.parquet", ai2d),
        "ai2d_no_mask": ("data/test-00000-of-00001.parquet", ai2d),
        "chartqa": ("data/test-00000-of-00001.parquet", chart),
        "mathvista": ("data/testmini-00000-of-00001.parquet", vista),
        "mmbench_en": ("en/dev-00000-of-00001.parquet", bench["en"]),
        "mmbench_cn": ("cn/dev-00000-of-00001.parquet", bench["cn"]),
        "mmvet": ("data/test-00000-of-00001.parquet", vet),
        "mmvet_v2": ("data/test-00000-of-00001.parquet", vet2),
        "mmmu": ("Art/validation-00000-of-00001.parquet", mmmu),
        "mmmu_pro_standard": ("standard (10 options)/test-00000-of-00001.parquet", pro),
        "mmmu_pro_vision": ("vision/test-00000-of-00001.parquet", vision),
        "mmstar": ("mmstar.parquet", star),
        "blink": ("Counting/val-00000-of-00001.parquet", blink),
        "seedbench": ("data/test-00000-of-00001.parquet", seed),
        "seedbench2_plus": ("data/test-00000-of-00001.parquet", plus),
        "realworldqa": ("data/test-00000-of-00001.parquet", world),
    }


def tiny_questions() -> list[Question]:
    """Questions as stage `questions` writes them, two for each benchmark of the tiny world."""
    asked = [{"role": "user", "content": "<image>What is the sum?"}]
    rows = [
        make_canonical_row(f"test-{number}", [picture(f"tiny {number}")], asked, str(number), "digits", "sum")
        for number in range(8)
    ]
    return [make_question(row, [image["bytes"] for image in row["images"]]) for row in rows]


def write_tsv(
    path: Path, rows: Sequence[Mapping[str, Any]], head: Sequence[str] | None = None, end: str = "\n"
) -> None:
    """A TSV file as pandas writes it: cells are quoted where they hold tabs, quotes or newlines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(head or rows[0]), delimiter="\t", lineterminator=end)
        writer.writeheader()
        writer.writerows(rows)


def arrow_table(rows: Rows) -> pa.Table:
    """The rows with columns of images typed as `datasets` types them."""
    names = list(rows[0])
    arrays = []
    for name in names:
        values = [row[name] for row in rows]
        one = next((value for value in values if value is not None), None)
        inner = one[0] if isinstance(one, list) and one else one
        of_images = (isinstance(inner, dict) and "bytes" in inner) or (
            name.startswith("image_") and name != "image_path"
        )
        kind = (pa.list_(IMAGE) if isinstance(one, list) else IMAGE) if of_images else None
        arrays.append(pa.array(values, type=kind))
    return pa.table(dict(zip(names, arrays, strict=True)))


def write_all(folder: Path, kind: str) -> None:
    """All benchmarks as `tsv` or as `hub`; those of the tiny world, which have one form each, in both folders."""
    write_world(folder, tiny_questions())
    if kind == "tsv":
        for name, rows in tsv().items():
            write_tsv(folder / f"{name}.tsv", rows)
        return
    for name, (shard, rows) in hub().items():
        path = folder / name / shard
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(arrow_table(rows), path)


if __name__ == "__main__":
    for form in ("tsv", "hub"):
        write_all(Path(sys.argv[1]) / form, form)

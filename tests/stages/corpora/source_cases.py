"""Inputs as people have them, each with what becomes of it: rows that are read, rejects with field, or one line."""

import base64
import gzip
import json
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stages.config.questions import Questions
from stages.corpora.rows import make_canonical_row
from tests.stages.corpora.source_files import block, draw, dump_lines, write_tar

ROWS = 3


@dataclass(frozen=True)
class Case:
    """What is written, and what is right."""

    make: Callable[[Path], Questions]
    read: int = ROWS
    rejects: Mapping[int, tuple[str, str]] = field(default_factory=dict)  # by row: field, part of the reason
    refused: str = ""  # part of the line about the file
    answers: tuple[str, ...] = ()  # of the first rows that are read


def make_llava(number: int, **changes: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\nWhat is it, {number}?"}, {"from": "gpt", "value": str(number)}]
    return {"id": f"q{number}", "image": f"{number}.png", "conversations": turns, **changes}


def say(number: int, answer: Any, question: Any = "<image>\nWhat is it?") -> dict[str, Any]:
    return make_llava(number, conversations=[{"from": "human", "value": question}, {"from": "gpt", "value": answer}])


def vqa(number: int, **changes: Any) -> dict[str, Any]:
    return {"question": f"What is it, {number}?", "answer": str(number), "image": f"{number}.png", **changes}


def draw_images(folder: Path) -> None:
    (folder / "images").mkdir(exist_ok=True)
    for number in range(ROWS):
        (folder / f"images/{number}.png").write_bytes(draw(number))


def listed(
    first: Mapping[str, Any] | None = None,
    make: Callable[[int], Any] = make_llava,
    prepare: Callable[[Path], Any] = lambda _folder: None,
    **source: Any,
) -> Callable[[Path], Questions]:
    """Writes a JSON list of ROWS rows, the first with these changes."""

    def write(folder: Path) -> Questions:
        draw_images(folder)
        rows = [make(number) for number in range(ROWS)]
        if first:
            rows[0] |= first
        (folder / "q.json").write_text(json.dumps(rows))
        prepare(folder)
        return block("q.json", "images", **source)

    return write


def written(name: str, content: bytes, **source: Any) -> Callable[[Path], Questions]:
    """Writes a file as it is."""

    def write(folder: Path) -> Questions:
        draw_images(folder)
        (folder / name).write_bytes(content)
        return block(name, "images", **source)

    return write


def make_canonical(number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": "<image>\nnumber?"}, {"role": "assistant", "content": str(number)}]
    return make_canonical_row(str(number), [draw(number)], messages, str(number), "s", "open")


def table(
    change: Callable[[int, dict[str, Any]], dict[str, Any]] = lambda _number, row: row, name: str = "t.parquet"
) -> Callable[[Path], Questions]:
    """Writes canonical rows with changes as parquet."""

    def write(folder: Path) -> Questions:
        draw_images(folder)
        rows = [change(number, make_canonical(number)) for number in range(ROWS)]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
        return block(name.split("/", maxsplit=1)[0], "images")

    return write


def damage(
    make: Callable[[Path], Questions], keep: float = 0.5, name: str = "t.parquet"
) -> Callable[[Path], Questions]:
    def write(folder: Path) -> Questions:
        questions = make(folder)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])
        return questions

    return write


def put(name: str, content: bytes) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return write


def save(name: str, kind: str) -> Callable[[Path], Any]:
    return lambda folder: Image.new("RGB", (6, 4), (9, 9, 9)).save(folder / "images" / name, kind)


def link(name: str, target: str, content: bytes = b"") -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        if content:
            put(target, content)(folder)
        (folder / name).symlink_to(folder / target)

    return write


def zip_images(folder: Path) -> None:
    with zipfile.ZipFile(folder / "images/all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(ROWS):
            archive.writestr(f"in/{number}.png", draw(number))


def tar_images(folder: Path) -> None:
    write_tar(folder, "images/all.tar", {f"in/{number}.png": draw(number) for number in range(ROWS)})


TEXT = base64.b64encode(draw(0)).decode()
LLAVA = json.dumps([make_llava(number) for number in range(ROWS)])
NFC = unicodedata.normalize("NFC", "café.png")
VQA_CSV = "question,answer,image\n" + "".join(f"What is {n}?,{n},{n}.png\n" for n in range(ROWS))
GBK = json.dumps([say(number, "图中是什么数字", "<image>\n图中是什么") for number in range(ROWS)], ensure_ascii=False)
TAR_ROWS = {
    f"{n}.{end}": draw(n) if end == "png" else json.dumps({"question": "?", "answer": n}).encode()
    for n in range(ROWS)
    for end in ("png", "json")
}


def make_header(name: str, kind: bytes, size: int) -> bytes:
    described = tarfile.TarInfo(name)
    described.type, described.size = kind, size
    return described.tobuf(tarfile.GNU_FORMAT)


def outside(folder: Path) -> Questions:
    (folder / "other.json").write_text(LLAVA)
    draw_images(folder)
    given = block("images").model_dump()
    return Questions.model_validate(given | {"sources": [{"path": "other.json"}]})


def fold_link(folder: Path) -> None:
    put("other/x.png", draw(0))(folder)
    link("images/l", "other")(folder)


def undecodable(folder: Path) -> Questions:
    texts = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff?", b"a?"]).buffers())
    pq.write_table(pa.table({"question": texts, "answer": ["a", "b"]}), folder / "t.parquet")
    return block("t.parquet")


def tar(members: Mapping[str, bytes], mode: str = "w") -> Callable[[Path], Questions]:
    return lambda folder: block(write_tar(folder, "t.tar", members, mode))


# --- what was reported ---
REPORTED: dict[str, Case] = {
    "answer int": Case(listed(say(0, 7)), answers=("7",)),
    "answer true": Case(listed(say(0, True)), answers=("yes",)),
    "answer list": Case(listed(say(0, ["2", "two", "2"])), answers=("2",)),
    "answer float": Case(listed(say(0, 3.5)), answers=("3.5",)),
    "answer null": Case(listed(say(0, None)), 2, {0: ("conversations", "no reference answer")}),
    "answer empty": Case(listed(say(0, "")), 2, {0: ("conversations", "no reference answer")}),
    "function calls": Case(
        listed(
            {
                "conversations": [
                    {"from": "human", "value": "<image>?"},
                    {"from": "function_call", "value": "{}"},
                    {"from": "gpt", "value": "1"},
                ]
            }
        ),
        2,
        {0: ("conversations.1.from", "the role function_call")},
    ),
    "GBK": Case(written("q.json", GBK.encode("gbk")), 0, refused="q.json: is not UTF-8 (byte 0xd6), it may be GB18030"),
    "HEIC": Case(
        listed({"image": "0.heic"}, prepare=put("images/0.heic", b"\0\0\0\x18ftypheic" + b"\0" * 64)),
        2,
        {0: ("images.0", "unreadable image")},
    ),
    "many images": Case(
        listed(say(0, "1" * 9000, "<image>" * 200 + "?") | {"image": ["0.png", "1.png"] * 100}),
        2,
        {0: ("answer", "characters of text")},
    ),
    "image is an object": Case(listed({"image": {"path": "0.png"}})),
    "image is base64 in an object": Case(listed({"image": {"bytes": TEXT}})),
    "image is empty text": Case(listed(say(0, "0", "How many?") | {"image": ""})),
    "GIF, WebP, BMP, TIFF": Case(
        listed(
            say(0, "0", "<image>" * 4 + "?") | {"image": ["a.gif", "a.webp", "a.bmp", "a.tif"]},
            prepare=lambda folder: [
                save(f"a.{end}", kind)(folder)
                for end, kind in (("gif", "GIF"), ("webp", "WEBP"), ("bmp", "BMP"), ("tif", "TIFF"))
            ],
        )
    ),
    "SVG": Case(
        listed({"image": "a.svg"}, prepare=put("images/a.svg", b"<svg/>")),
        2,
        {0: ("images.0", "not one of the formats")},
    ),
    "truncated JPEG": Case(
        listed({"image": "a.png"}, prepare=put("images/a.png", draw(0, "JPEG")[:300])),
        2,
        {0: ("images.0", "unreadable image")},
    ),
    "image is a folder": Case(
        listed({"image": "sub"}, prepare=put("images/sub/x.png", b"")), 2, {0: ("image", "a folder, not a file")}
    ),
    "NFD name on disk": Case(
        listed({"image": NFC}, prepare=put("images/" + unicodedata.normalize("NFD", NFC), draw(0)))
    ),
    "NFD name in the row": Case(
        listed({"image": unicodedata.normalize("NFD", NFC)}, prepare=put("images/" + NFC, draw(0)))
    ),
    "spaces and other scripts": Case(
        listed({"image": "my pic ü 图.png"}, prepare=put("images/my pic ü 图.png", draw(0)))
    ),
    "Windows path": Case(listed({"image": "sub\\x.png"}, prepare=put("images/sub/x.png", draw(0)))),
    "no folder of images": Case(listed(images="nope"), 0, refused="images 'nope': no such folder, tar or zip"),
    "marker in the middle": Case(listed(say(0, "0", "What\n<image>\nis it?"))),
    "marker in the second turn": Case(
        listed(
            {
                "conversations": [
                    {"from": "human", "value": "Hello"},
                    {"from": "gpt", "value": "Hi"},
                    {"from": "human", "value": "<image>\nnumber?"},
                    {"from": "gpt", "value": "0"},
                ]
            }
        )
    ),
    "marker in the system turn": Case(
        listed(
            {
                "conversations": [
                    {"from": "system", "value": "<image> You see"},
                    {"from": "human", "value": "number?"},
                    {"from": "gpt", "value": "0"},
                ]
            }
        ),
        2,
        {0: ("messages", "an <image> marker in a turn that is not the user's")},
    ),
    "no ids": Case(listed(make=lambda number: {k: v for k, v in make_llava(number).items() if k != "id"})),
    "null ids": Case(listed(make=lambda number: make_llava(number, id=None))),
    "some ids": Case(listed({"id": None})),
    "one id for all": Case(listed(make=lambda number: make_llava(number, id="same"))),
    "one image for all": Case(listed(make=lambda number: make_llava(number, image="0.png"))),
    "content parts in `from`": Case(
        listed(say(0, "0", [{"type": "image", "image": "0.png"}, {"type": "text", "text": "Which?"}]))
    ),
    "plain": Case(listed(), answers=("0", "1", "2")),
    "upper-case role": Case(
        listed({"conversations": [{"from": "Human", "value": "<image>?"}, {"from": "GPT", "value": "0"}]})
    ),
    "surrogate": Case(listed(say(0, "a\ud83d")), 2, {0: ("answer", "U+D83D")}),
    "NUL": Case(listed(say(0, "a\0b")), 2, {0: ("answer", "U+0000")}),
    "trailing slash": Case(listed(images="images/")),
    "UTF-16": Case(written("q.json", LLAVA.encode("utf-16"))),
    "table: list of answers": Case(table(lambda n, row: row | {"answer": [str(n), "some"]}), answers=("0", "1")),
    "table: nested columns": Case(table(lambda n, row: row | {"extra_info": {"index": n, "split": "train"}})),
    "table: nested folder": Case(table(name="fold/train/a.parquet")),
    "table: number as id": Case(table(lambda n, row: row | {"id": n})),
    "table: images as bytes": Case(table(lambda n, row: row | {"images": [draw(n)]})),
    "table: images as structs of paths": Case(
        table(lambda n, row: row | {"images": [{"bytes": None, "path": f"{n}.png"}]})
    ),
    "table: images as paths": Case(
        table(lambda n, row: row | {"images": [f"{n}.png" if n else "nowhere.png"]}),
        2,
        {0: ("images", "image nowhere.png: No such file")},
    ),
    "table: one image as struct": Case(table(lambda n, row: row | {"images": {"bytes": draw(n), "path": None}})),
    "table: JSON lines with its name": Case(
        written("t.parquet", b'{"a": 1}'), 0, refused="t.parquet: no form of question is recognised in the columns a"
    ),
    "table: messages as text": Case(table(lambda _n, row: row | {"messages": json.dumps(row["messages"])})),
    "table: no images": Case(
        table(
            lambda n, row: (
                row
                | (
                    {
                        "images": None,
                        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "0"}],
                    }
                    if n == 0
                    else {}
                )
            )
        )
    ),
    "table: truncated": Case(damage(table()), 0, refused="t.parquet: not readable as parquet"),
}

# --- more ---
MORE: dict[str, Case] = {
    "BOM": Case(written("q.json", LLAVA.encode("utf-8-sig"))),
    "UTF-16 without mark": Case(written("q.json", LLAVA.encode("utf-16-le"))),
    "UTF-32": Case(written("q.json", LLAVA.encode("utf-32"))),
    "CSV in UTF-16": Case(written("q.csv", VQA_CSV.encode("utf-16"))),
    "Latin-1": Case(written("q.csv", VQA_CSV.replace("What", "Où").encode("latin-1")), 0, refused="is not UTF-8"),
    "CRLF lines": Case(written("q.jsonl", dump_lines([vqa(n) for n in range(ROWS)]).replace(b"\n", b"\r\n"))),
    "CRLF cells": Case(written("q.csv", VQA_CSV.replace("\n", "\r\n").encode()), answers=("0", "1", "2")),
    "blank lines": Case(written("q.jsonl", b"\n\n" + dump_lines([vqa(n) for n in range(ROWS)]) + b"\n \n")),
    "one broken line": Case(
        written("q.jsonl", dump_lines([vqa(0), vqa(1)]) + b'{"question": "?\n'), 2, {2: ("", "the line is not JSON")}
    ),
    "a line that is no object": Case(
        written("q.jsonl", b"[1]\n" + dump_lines([vqa(1), vqa(2)])), 0, refused="q.jsonl: row 1 is not JSON"
    ),
    "a number among rows": Case(
        written("q.json", json.dumps([7, vqa(1), vqa(2)]).encode()), 2, {0: ("", "expected an object, found int")}
    ),
    "a line too deep": Case(
        written("q.jsonl", b'{"a":' * 100_000 + b"\n" + dump_lines([vqa(1)])), 1, {0: ("", "the line is not JSON: ")}
    ),
    "one object over many lines": Case(
        written("q.json", json.dumps({"data": [vqa(0)]}, indent=1).encode()), 0, refused="q.json: one JSON object over"
    ),
    "empty file": Case(written("q.jsonl", b""), 0, refused="q.jsonl: is empty"),
    "only spaces": Case(written("q.jsonl", b" \n \n"), 0, refused="q.jsonl: is empty"),
    "list that breaks off": Case(written("q.json", LLAVA[:-40].encode()), 0, refused="q.json: row"),
    "zip": Case(written("q.zip", b"PK\x03\x04" + b"\0" * 40), 0, refused="q.zip: a zip archive; unpack it"),
    "unknown file": Case(written("q.bin", b"\x01\x02\x03" * 40), 0, refused="q.bin: neither"),
    "truncated gzip": Case(
        damage(written("q.jsonl.gz", gzip.compress(dump_lines([vqa(n) for n in range(300)]))), 0.6, "q.jsonl.gz"),
        0,
        refused="q.jsonl.gz: the compressed file is damaged",
    ),
    "CSV with a short row": Case(
        written("q.csv", (VQA_CSV + "only one\n").encode()), 3, {3: ("", "1 cells, but 3 columns")}
    ),
    "CSV with a name twice": Case(written("q.csv", b"question,answer,answer\na,b,c\n"), 0, refused="is there twice"),
    "CSV without rows": Case(written("q.csv", b"question,answer\n"), 0, refused="has no rows"),
    "CSV with a quoted newline": Case(written("q.csv", b'question,answer\n"How\nmany?",3\n'), 1, answers=("3",)),
    "CSV with semicolons": Case(written("q.csv", b"question;answer\nHow many?;3\n"), 1, answers=("3",)),
    "CSV with an empty answer": Case(
        written("q.csv", b"question,answer\nHow many?,\nWhat?,b\n"), 1, {0: ("answer", "no reference answer")}
    ),
    "TSV": Case(written("q.tsv", VQA_CSV.replace(",", "\t").encode())),
    "an address": Case(
        listed(vqa(0, image="https://example.org/a.png"), vqa), 2, {0: ("image", "images are not fetched from the web")}
    ),
    "a data URL": Case(listed(vqa(0, image=f"data:image/png;base64,{TEXT}"), vqa)),
    "bare base64": Case(listed(vqa(0, image=TEXT), vqa)),
    "a data URL that is no image": Case(
        listed(vqa(0, image="data:text/html;base64,AAAA"), vqa), 2, {0: ("image", "not an image")}
    ),
    "broken base64": Case(listed(vqa(0, image={"bytes": "!!!"}), vqa), 2, {0: ("image", "not base64")}),
    "image_url part": Case(
        listed(
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{TEXT}"}},
                            {"type": "text", "text": "Which?"},
                        ],
                    },
                    {"role": "assistant", "content": "0"},
                ]
            },
            lambda n: {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": str(n)}]},
        ),
        answers=("0", "1", "2"),
    ),
    "Anthropic's part": Case(
        listed(
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": TEXT}},
                            {"type": "text", "text": "Which?"},
                        ],
                    },
                    {"role": "assistant", "content": "0"},
                ]
            },
            lambda n: {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": str(n)}]},
        )
    ),
    "file address": Case(lambda folder: listed(vqa(0, image=f"file://{folder}/images/0.png"), vqa)(folder)),
    "absolute path inside": Case(lambda folder: listed(vqa(0, image=f"{folder}/images/0.png"), vqa)(folder)),
    "absolute path outside": Case(
        listed(vqa(0, image="/etc/passwd"), vqa), 2, {0: ("image", "only what is in there is watched")}
    ),
    "path that climbs": Case(
        listed(vqa(0, image="../secret.png"), vqa, put("secret.png", draw(0))), 2, {0: ("image", "is watched")}
    ),
    "link inside": Case(listed(vqa(0, image="l.png"), vqa, link("images/l.png", "images/0.png"))),
    "link to a file elsewhere": Case(listed(vqa(0, image="l.png"), vqa, link("images/l.png", "blob", draw(0)))),
    "link to a folder elsewhere": Case(
        listed(vqa(0, image="l/x.png"), vqa, fold_link),
        2,
        {0: ("image", "is watched")},
    ),
    "pictures in a zip": Case(
        listed(make=lambda n: vqa(n, image=f"in/{n}.png"), prepare=zip_images, images="images/all.zip")
    ),
    "pictures in a tar": Case(
        listed(make=lambda n: vqa(n, image=f"in/{n}.png"), prepare=tar_images, images="images/all.tar")
    ),
    "path through an archive": Case(listed(vqa(0, image="all.zip/in/0.png"), vqa, zip_images)),
    "member that is not there": Case(
        listed(vqa(0, image="all.tar/in/9.png"), vqa, tar_images), 2, {0: ("image", "No such file")}
    ),
    "broken zip of pictures": Case(
        listed(vqa(0, image="all.zip/0.png"), vqa, put("images/all.zip", b"PK\x03\x04nothing")),
        2,
        {0: ("image", "damaged archive")},
    ),
    "video": Case(listed(vqa(0, video="a.mp4"), vqa), 2, {0: ("video", "video is not supported")}),
    "video marker": Case(
        listed(say(0, "0", "<video>\nA?") | {"image": None}), 2, {0: ("user", "video is not supported")}
    ),
    "audio part": Case(
        listed(
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            lambda n: {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": str(n)}]},
        ),
        2,
        {0: ("messages.0.content.0", "a part of type input_audio is not supported")},
    ),
    "tool calls": Case(
        listed(
            {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [{"id": 1}]}]},
            lambda n: {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": str(n)}]},
        ),
        2,
        {0: ("messages.1.tool_calls", "calls of tools")},
    ),
    "question of the wrong type": Case(listed(vqa(0, question=7), vqa), 2, {0: ("question", "a question is text")}),
    "no question": Case(listed(vqa(0, question=None), vqa), 2, {0: ("question", "no question")}),
    "answer that is an object": Case(
        listed(vqa(0, answer={"x": 1}), vqa), 2, {0: ("answer", "an answer is text, a number")}
    ),
    "annotators' answers": Case(
        listed(make=lambda n: {"question": f"{n}?", "answers": [{"answer": "a"}, {"answer": "b"}, {"answer": "b"}]}),
        answers=("b", "b"),
    ),
    "not a number": Case(listed(vqa(0, answer=float("nan")), vqa), 2, {0: ("answer", "no reference answer")}),
    "options counted from 1": Case(
        listed(make=lambda n: {"question": f"{n}?", "options": ["x", "y", "z"], "answer": n + 1}),
        answers=("A", "B", "C"),
    ),
    "options as Python writes them": Case(
        listed(make=lambda n: {"question": f"{n}?", "options": "['x', 'y']", "answer": "B"}), answers=("B",)
    ),
    "options with letters": Case(
        listed(make=lambda n: {"question": f"{n}?", "choices": ["A. x", "B. y"], "answer": "(b)"}), answers=("B",)
    ),
    "answer that is no option": Case(
        listed({"answer": "w"}, lambda n: {"question": f"{n}?", "options": ["x", "y"], "answer": "x"}),
        2,
        {0: ("answer", "none of the options A to B")},
    ),
    "several right options": Case(
        listed({"answer": ["A", "B"]}, lambda n: {"question": f"{n}?", "options": ["x", "y"], "answer": "x"}),
        2,
        {0: ("answer", "several right options")},
    ),
    "numbered markers": Case(
        listed(
            make=lambda n: {
                "question": "Is <image 2> like <image 1>?",
                "answer": "no",
                "image_1": f"{n}.png",
                "image_2": "0.png",
                "image_3": None,
            }
        )
    ),
    "columns that nobody knows": Case(
        listed(make=lambda n: {"frage": "?", "antwort": str(n)}), 0, refused="no form of question is recognised"
    ),
    "columns by name": Case(
        listed(
            make=lambda n: {"frage": "?", "meta": {"wahr": n}}, columns={"question": "frage", "answer": "meta.wahr"}
        ),
        answers=("0", "1", "2"),
    ),
    "rows without names of columns": Case(  # as easy-vqa
        listed(make=lambda n: [f"What is {n}?", str(n), n], columns={"question": "0", "answer": "1", "images": "2"}),
        answers=("0", "1", "2"),
    ),
    "id of an image": Case(listed(make=lambda n: {"question": f"{n}?", "answer": "a", "image_id": n})),
    "id of an image that is not there": Case(
        listed({"image_id": 77}, lambda n: {"question": f"{n}?", "answer": "a", "image_id": n}),
        2,
        {0: ("image_id", "image 77: No such file")},
    ),
    "columns by a wrong name": Case(
        listed(columns={"answer": "antwort"}), 0, refused="columns.answer is 'antwort', which the rows lack"
    ),
    "filter": Case(
        listed(make=lambda n: vqa(n, lang="en" if n else "de"), filter={"lang": ["en", "fr"]}), 2, answers=("1", "2")
    ),
    "table: text that is no UTF-8": Case(
        undecodable,
        1,
        {0: ("", "a value cannot be read")},
    ),
    "tar": Case(tar(TAR_ROWS)),
    "tar.gz": Case(tar(TAR_ROWS, "w:gz")),
    "tar that breaks off": Case(damage(tar(TAR_ROWS), 0.4, "t.tar"), 0, refused="t.tar: damaged"),
    "tar with a broken member": Case(
        tar(TAR_ROWS | {"0.json": b"{"}), 2, {0: ("json", "member '0.json' cannot be read")}
    ),
    "tar with a pickle": Case(tar(TAR_ROWS | {"2.pkl": b"\x80\x04."})),
    "tar that climbs": Case(tar({f"../../{name}": content for name, content in TAR_ROWS.items()})),
    "tar with video": Case(tar(TAR_ROWS | {"2.mp4": b"x"}), 2, {2: ("video", "video is not supported")}),
    "source outside": Case(
        outside,
        0,
        refused="is outside questions.path and questions.images",
    ),
    "split of its name alone": Case(table(name="fold/train-0.parquet"), 3),
    "archive of zeros": Case(written("t.tar", bytes(10240)), 0, refused="t.tar: no files in this archive"),
    "long name that is no name": Case(
        written("t.tar", make_header("x", tarfile.GNUTYPE_LONGNAME, 2**40)), 0, refused="metadata of 1,099,511,627,776"
    ),
}

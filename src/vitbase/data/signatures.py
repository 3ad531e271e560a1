"""What a file that is no image to us is, by its first bytes, and what would open it.

Looked at only once decoding has failed. Sources: the formats' own specifications, and file(1).
"""

from __future__ import annotations

from typing import NamedTuple


class Content(NamedTuple):
    """What a file holds."""

    what: str  # reads on from "it is"
    advice: str
    plugin: str = ""  # by which Pillow may open it, where that is installed


_FETCH = "fetch the image itself"
_UNPACK = "unpack it"
_EXPORT = "save it as PNG or JPEG with the program that made it"
_DEVELOP = "develop it to PNG or JPEG (dcraw, RawTherapee, Lightroom)"
_FRAMES = "take frames out of it (ffmpeg -i FILE frame%05d.png)"

_AVIF = Content(
    "an AVIF image", "Pillow 11.3 or newer opens it: pip install --upgrade pillow", "AVIF"
)
_HEIC = Content("a HEIC (HEIF) image", "pip install 'vitbase[heif]' opens it", "HEIF")
_JPEG_2000 = Content(
    "a JPEG 2000 image",
    "a Pillow built with OpenJPEG opens it, as pip's is: pip install --force-reinstall pillow",
    "JPEG2000",
)
_JPEG_XL = Content("a JPEG XL image", "convert it to PNG or JPEG (djxl IN.jxl OUT.png)")

_SIGNATURES: tuple[tuple[int, bytes, Content], ...] = (
    (0, b"\xff\x4f\xff\x51", _JPEG_2000),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", _JPEG_2000),
    (0, b"\xff\x0a", _JPEG_XL),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", _JPEG_XL),
    (0, b"\0\0\1\0", Content("an icon (ICO)", _EXPORT, "ICO")),
    (0, b"\0\0\2\0", Content("a cursor (CUR)", _EXPORT)),
    (0, b"8BPS", Content("a Photoshop file (PSD)", _EXPORT)),
    (0, b"gimp xcf", Content("a GIMP file (XCF)", _EXPORT)),
    (0, b"II\xbc\x01", Content("a JPEG XR image", _EXPORT)),
    (0, b"BPG\xfb", Content("a BPG image", _EXPORT)),
    (0, b"qoif", Content("a QOI image", _EXPORT)),
    (0, b"DDS ", Content("a texture (DDS)", _EXPORT)),
    (0, b"v/1\x01", Content("an OpenEXR image", _EXPORT)),
    (0, b"#?RADIANCE", Content("a Radiance HDR image", _EXPORT)),
    (0, b"SIMPLE  =", Content("a FITS file", _EXPORT)),
    (128, b"DICM", Content("a DICOM file", "save it as PNG (dcm2pnm, pydicom)")),
    (8, b"CR\x02", Content("a raw photograph (Canon CR2)", _DEVELOP)),
    (0, b"FUJIFILMCCD-RAW", Content("a raw photograph (Fujifilm RAF)", _DEVELOP)),
    (0, b"IIRO", Content("a raw photograph (Olympus ORF)", _DEVELOP)),
    (0, b"IIRS", Content("a raw photograph (Olympus ORF)", _DEVELOP)),
    (0, b"IIU\0", Content("a raw photograph (Panasonic RW2)", _DEVELOP)),
    (0, b"FOVb", Content("a raw photograph (Sigma X3F)", _DEVELOP)),
    (0, b"%PDF", Content("a PDF", "save its pages as images (pdftoppm -png FILE)")),
    (0, b"%!PS", Content("a PostScript file (EPS)", "render it to PNG (gs, Inkscape)")),
    (0, b"\xc5\xd0\xd3\xc6", Content("a PostScript file (EPS)", "render it to PNG (gs, Inkscape)")),
    (0, b"\x1f\x8b", Content("compressed with gzip", f"{_UNPACK} (gunzip)")),
    (0, b"BZh", Content("compressed with bzip2", f"{_UNPACK} (bunzip2)")),
    (0, b"\xfd7zXZ\0", Content("compressed with xz", f"{_UNPACK} (unxz)")),
    (0, b"\x28\xb5\x2f\xfd", Content("compressed with zstd", f"{_UNPACK} (unzstd)")),
    (0, b"PK\x03\x04", Content("a zip archive, or an office document", _UNPACK)),
    (0, b"Rar!\x1a\x07", Content("a RAR archive", _UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", Content("a 7z archive", _UNPACK)),
    (257, b"ustar", Content("a tar archive", f"{_UNPACK} (tar -xf FILE)")),
    (0, b"PAR1", Content("a Parquet file", "give its folder as --data_path")),
    (0, b"\x89HDF\r\n\x1a\n", Content("an HDF5 file", "save its images as PNG")),
    (0, b"\x93NUMPY", Content("an array of numpy (.npy)", "save its images as PNG")),
    (0, b"\0\5\x16\7", Content("what macOS keeps beside a file (AppleDouble)", "delete it")),
    (0, b"\0\0\0\1Bud1", Content("what macOS keeps of a folder (.DS_Store)", "delete it")),
    (0, b"\x1a\x45\xdf\xa3", Content("a video (Matroska or WebM)", _FRAMES)),
    (0, b"\0\0\1\xba", Content("a video (MPEG)", _FRAMES)),
    (0, b"\0\0\1\xb3", Content("a video (MPEG)", _FRAMES)),
    (0, b"FLV\1", Content("a video (FLV)", _FRAMES)),
    (0, b"OggS", Content("sound or a video (Ogg)", _FRAMES)),
    (8, b"AVI LIST", Content("a video (AVI)", _FRAMES)),
    (8, b"WAVE", Content("sound (WAV)", "remove it")),
    (0, b"ID3", Content("sound (MP3)", "remove it")),
    (
        0,
        b"version https://git-lfs",
        Content("a pointer of Git LFS", "`git lfs pull` fetches the image it stands for"),
    ),
    (
        0,
        b"/annex/objects/",
        Content("a pointer of git-annex", "`git annex get` fetches the image it stands for"),
    ),
)
_DNG_VERSION = (0xC612).to_bytes(2, "little") + b"\1\0", b"\xc6\x12\0\1"
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_HEAD = 1024


def name_content(data: bytes) -> Content | None:
    """Tell what a file is, if its first bytes do; of text, see :func:`name_text`."""
    if not data:
        return Content("empty", _FETCH)
    head = data[:_HEAD]
    if head[4:8] == b"ftyp":
        return _name_brand(head)
    for place, magic, content in _SIGNATURES:
        if head.startswith(magic, place):
            return content
    if head[:4] in (b"II*\0", b"MM\0*") and any(version in head for version in _DNG_VERSION):
        return Content("a raw photograph (DNG)", _DEVELOP)
    if not any(head):
        return Content("zeros from its beginning, as if a copy had been cut off", _FETCH)
    return None


def name_text(data: bytes) -> Content | None:
    """Tell what kind of text a file begins with, if it does."""
    head = data[:_HEAD]
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.end < len(head) or error.start < _HEAD - 3:  # not a letter cut in two
            return None
        text = head[: error.start].decode("utf-8-sig")
    if not all(letter.isprintable() or letter.isspace() for letter in text):
        return None
    lower = text.lstrip().lower()
    if lower.startswith("<!doctype html") or any(f"<{tag}" in lower for tag in ("html", "body")):
        return Content("an HTML page, such as a server's error message", _FETCH)
    if lower.startswith("<") and "<svg" in lower:
        return Content("an SVG drawing", "render it to PNG (rsvg-convert, Inkscape)")
    if lower.startswith("<"):
        return Content("XML, such as a store's error message", _FETCH)
    start = " ".join(text.split())
    return Content(f"text ('{start[:40]}{'…' * (len(start) > 40)}')", _FETCH)


def _name_brand(head: bytes) -> Content:
    """Name a file of the ISO base media format by its brands (ISO/IEC 14496-12, 4.3)."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[place : place + 4] for place in range(16, end - 3, 4))]
    if brands[0] in _HEIC_BRANDS:
        return _HEIC
    if {b"avif", b"avis"} & set(brands):
        return _AVIF
    if brands[0] in (b"mif1", b"msf1") or _HEIC_BRANDS & set(brands):
        return _HEIC
    if brands[0] == b"crx ":
        return Content("a raw photograph (Canon CR3)", _DEVELOP)
    return Content("a video (MP4 or QuickTime)", _FRAMES)

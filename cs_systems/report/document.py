"""What a document in HTML and one in PDF have in common: its title, its images, and how a file is written."""

import pathlib
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from urllib.parse import unquote

HTML_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
"""Not shown; all other HTML of the text is shown as the text it is."""
SAFE_LINKS = ("https://", "http://", "mailto:")
_TITLE = re.compile(r"^# +(?P<title>.+?) *#* *$", re.MULTILINE)
_MEDIA_TYPES = {
    ".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg",
    ".gif": "image/gif", ".webp": "image/webp",
}  # fmt: skip
_LARGEST_BYTES = 20 * 2**20


@dataclass
class Images:
    """The images of a document: only files within its folder, or within that of the text, are ever read."""

    folder: pathlib.Path
    """Of the document and its plots."""
    beside: pathlib.Path
    """Of the text; an image that it shows from there is copied to `folder`."""
    problems: list[str] = field(default_factory=list)
    """A sentence for each image that was left out."""

    def find(self, source: str) -> pathlib.Path | None:
        """The file in `folder` that a link means, or None."""
        relative = unquote(source)
        try:
            for start in (self.folder, self.beside):
                path = (start / relative).resolve()
                if _is_image(path) and path.is_relative_to(start.resolve()) and path.is_file():
                    return self._within_folder(path, relative, start)
        except (OSError, ValueError, RuntimeError):  # a name that no file can have, a link to itself
            pass
        known = ", ".join(suffix[1:] for suffix in _MEDIA_TYPES)
        self._leave_out(source, f"no {known} file of that name in {self.beside} or {self.folder}")
        return None

    def media_type(self, path: pathlib.Path) -> str:
        """What a browser has to know."""
        return _MEDIA_TYPES[path.suffix.lower()]

    def _within_folder(self, path: pathlib.Path, relative: str, start: pathlib.Path) -> pathlib.Path | None:
        if path.stat().st_size > _LARGEST_BYTES:
            self._leave_out(relative, f"larger than {_LARGEST_BYTES >> 20} MiB")
            return None
        if start == self.folder:
            return path
        copy = self.folder / relative
        if not copy.resolve().is_relative_to(self.folder.resolve()):
            self._leave_out(relative, "its place in the document would be outside its folder")
            return None
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        except OSError as error:
            self._leave_out(relative, f"cannot copy it to {copy} ({error.strerror})")
            return None
        return copy.resolve()

    def _leave_out(self, source: str, why: str) -> None:
        sentence = f"image {source[:100]!r} is left out: {why}"
        if sentence not in self.problems:
            self.problems.append(sentence)


def _is_image(path: pathlib.Path) -> bool:
    return path.suffix.lower() in _MEDIA_TYPES


def read_title(text: str) -> str:
    """The first heading of level one, as typed."""
    found = _TITLE.search(text)
    return "".join(filter(str.isprintable, found["title"])) if found else "Write-up"


def is_safe_link(target: str) -> bool:
    """Whether a link leads to a page or an address for mail, and runs nothing."""
    return target.lower().startswith(SAFE_LINKS)


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """Write a file in one step: it has its new content or, when that fails, still the old.

    Raises:
        ValueError: in one line, when there is no space or no permission.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            temporary = pathlib.Path(file.name)
            file.write(data)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        why = f"{error.strerror}; make space or choose another folder"
        raise ValueError(f"{path}: cannot write ({why})") from None

"""Links and pictures of a notebook's page, checked so that the book is whole without network."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from files import put, size

LIVE = "../index.html"  # the page that draws cars in the browser, beside the book's folder


@dataclass
class Links:
    """Of the notebook at `path`, in the repository `root` at `url`, for the book in `folder`; `names`: its chapters."""

    path: Path
    root: Path
    folder: Path
    url: str
    names: list[str]

    def mend(self, soup: BeautifulSoup) -> None:
        """Change a page's links, pictures and tables to what the book has; ValueError where that is missing."""
        for image in soup.find_all("img"):
            if urlsplit(image["src"]).netloc:  # a badge: its words will do
                image.replace_with(image["alt"])
                continue
            if image["src"].startswith("../images/"):
                source = self.file(image["src"])
                image["src"] = source.relative_to(self.root).as_posix()
                put(self.folder / image["src"], source.read_bytes())
            if not image.get("alt"):
                raise ValueError(f"{self.path.name}: a picture without alt text, {image['src']}")
            if not image.get("width"):
                image["width"], image["height"] = size(self.folder / image["src"])
            image["loading"] = "lazy"
        for anchor in soup.find_all("a", href=True):
            if "anchor-link" in anchor.get("class", []):
                anchor.parent["id"] = unquote(anchor.parent["id"])  # nbconvert writes %C2%B7 for ·
                anchor["href"] = f"#{anchor.parent['id']}"
                anchor["aria-label"] = f"Link to the section “{anchor.parent.get_text()[:-1]}”"
            elif not urlsplit(anchor["href"]).scheme and not anchor["href"].startswith(("#", LIVE)):
                anchor["href"] = self.target(anchor["href"])
        for table in soup.find_all("table"):
            table.wrap(soup.new_tag("div", attrs={"class": "scroll"}))

    def file(self, address: str) -> Path:
        """The file or folder of the repository that an address in the notebook means."""
        file = (self.path.parent / unquote(urlsplit(address).path)).resolve()
        if not file.is_relative_to(self.root.resolve()) or not file.exists():
            raise ValueError(f"{self.path.name}: {address} leads to nothing in the repository")
        return self.root / file.relative_to(self.root.resolve())

    def target(self, address: str) -> str:
        """Where a relative link leads in the book: to one of its pages, or to the repository."""
        address, sign, anchor = address.partition("#")
        file = self.file(address)
        place = file.relative_to(self.root).as_posix()
        if file.suffix == ".ipynb" and file.stem in self.names:
            return f"{file.stem}.html{sign}{anchor}"
        if place == "README.md":  # its list of notebooks is the book's first page
            return "index.html" if anchor == "the-notebooks" else f"{self.url}{sign}{anchor}"
        return f"{self.url}/{'tree' if file.is_dir() else 'blob'}/main/{place}{sign}{anchor}"

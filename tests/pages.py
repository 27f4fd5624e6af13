"""Pages, read as a browser reads them."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """A page's tags with their attributes, and its text."""

    def __init__(self, html):
        super().__init__()
        self.html, self.tags, self.text = html, [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def figures(self):
        return [each["id"] for each in self.all("figure")]

    @property
    def ids(self):
        return [each["id"] for _, each in self.tags if "id" in each]

    @property
    def links(self):
        return [each[name] for _, each in self.tags for name in ("href", "src", "xlink:href") if name in each]

"MedlinePlus' search service (wsearch.nlm.nih.gov), as far as medlab asks it, over made-up topics. Pages, both dialects, search marks, empty results."

from dataclasses import dataclass
from html import escape

from .base import Server, ok

HOME = "https://medlineplus.gov"


@dataclass
class Topic:
    "A health topic; `words`: the terms that find it; `folder` puts it among pages of other owners."

    name: str
    words: tuple[str, ...] = ("fever",)
    summary: str = ""
    folder: str = ""
    language: str = "English"
    organization: str = "National Library of Medicine"

    @property
    def url(self):
        return f"{HOME}/{self.folder}{self.name.lower().replace(' ', '')}.html"

    def html(self, term):
        said = self.summary or (
            f"<h3>What is {self.name}?</h3>\n<p>{self.name} is a made-up ailment with a fever.</p>\n\n<h3>What can I do?</h3>\n"
            "<p>You can:</p>\n<ul>\n<li>Rest</li>\n<li>Drink water &amp; wait</li>\n</ul>\n<p>NIH: National Institute of Lessons</p>"
        )
        return said.replace(term, f'<span class="qt0">{term}</span>')


def document(topic, term="fever", rank=0, dialect="topic"):
    "One result in the dialect asked for."
    html, parts = escape(topic.html(term), quote=False), []
    if dialect in ("topic", "all"):
        name = escape(topic.name, quote=True)
        record = f'<health-topic title="{name}" url="{topic.url}" id="{rank}" language="{topic.language}" date-created="03/08/2010">'
        record += f"<also-called>A name</also-called><full-summary>{html}</full-summary>"
        record += f'<group url="{HOME}/symptoms.html" id="31">Symptoms</group></health-topic>'
        parts.append(f'<content name="healthTopic">{record}</content>')
    if dialect in ("brief", "all"):
        marked = escape(topic.name.replace("Fever", '<span class="qt0">Fever</span>'), quote=False)
        parts += [f'<content name="title">{marked}</content>', f'<content name="organizationName">{topic.organization}</content>']
        parts += [f'<content name="FullSummary">{html}</content>', '<content name="groupName">Symptoms</content>']
        parts.append('<content name="snippet">...</content>')
    return f'<document rank="{rank}" url="{topic.url}">{"".join(parts)}</document>'


def result(documents, count=None, term="fever", start=0):
    count = len(documents) if count is None else count
    if not count:
        return f'<?xml version="1.0" encoding="UTF-8"?>\n<nlmSearchResult><term>{term}</term><count>0</count></nlmSearchResult>'.encode()
    head = f"<term>{term}</term><file>viv_x</file><server>pvlb7</server><count>{count}</count>"
    head += f"<retstart>{start}</retstart><retmax>{len(documents)}</retmax>"
    listed = f'<list num="{count}" start="{start}" per="{len(documents)}">{"".join(documents)}</list>'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<nlmSearchResult>{head}{listed}</nlmSearchResult>'.encode()


class MedlinePlusServer(Server):
    "Finds `topics` by their words; `most`: results on a page, whatever was asked for; `dialect` overrides rettype."

    def __init__(self, topics=(), most=1000, dialect=""):
        super().__init__()
        self.web.RequestHandlerClass.disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's acknowledgement
        self.topics, self.most, self.dialect = list(topics), most, dialect
        self.base = f"{self.url}/ws/query"

    def answer(self, asked):
        query = asked.query
        if asked.path != "/ws/query" or query.get("db") != "healthTopics":
            return None
        found = [topic for topic in self.topics if query["term"] in topic.words]
        start, size = int(query.get("retstart", 0)), min(int(query.get("retmax", 10)), self.most)
        dialect = self.dialect or query.get("rettype", "brief")
        page = [document(topic, query["term"], start + n, dialect) for n, topic in enumerate(found[start : start + size])]
        return ok(result(page, len(found), query["term"], start), {"Content-Type": "text/xml;charset=UTF-8"})

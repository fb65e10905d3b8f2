"CDC's content syndication API v2, as far as medlab asks it, over made-up pages. Its links lead to another host on purpose."

from dataclasses import dataclass, field

from .base import Answer, Server, ok

PLACE = "/api/v2/resources/"
CDC = {"name": "Centers for Disease Control and Prevention", "acronym": "CDC", "websiteUrl": ""}
NIH = {"name": "National Institutes of Health", "acronym": "NIH", "websiteUrl": ""}


@dataclass
class Page:
    "An item of the catalogue; `more` overrides fields of it, `answer` is sent instead of its page."

    id: int
    name: str = ""
    changed: str = "2026-05-01"
    html: str = ""
    more: dict = field(default_factory=dict)
    answer: Answer | None = None

    def item(self):
        url = f"https://www.cdc.gov/made-up/page{self.id}.html"
        base = {
            "id": self.id, "name": self.name or f"Page {self.id}", "description": "", "mediaType": "HTML", "language": {"name": "English", "isoCode": "eng"},
            "tags": [], "source": CDC, "attribution": None, "sourceUrl": url, "targetUrl": url, "dateModified": f"{self.changed}T00:00:00Z",
        }  # fmt: skip
        return {**base, **self.more}

    def body(self):
        return self.html or (
            f'<div class="syndicate"><p>Page {self.id} is about a made-up disease that passes.</p>\n<div class="box"><h2>Signs of it</h2></div>'
            "<ul><li>Fever</li><li>Cough &amp; cold</li></ul><h2>What to do</h2>"
            "<table><tr><th>Day</th><th>Do</th></tr><tr><td>1</td><td>Rest</td></tr></table></div>"
        )


def envelope(items=(), status=200, message=(), **pagination):
    paging = {"total": len(items), "count": len(items), "max": 100, "offset": 0, "pageNum": 1, "totalPages": 1, "previousUrl": "", "nextUrl": ""}
    paging |= pagination
    return {"meta": {"status": status, "message": list(message), "resultSet": {"id": "x"}, "pagination": paging}, "results": list(items)}


def error(status, said, http=200):
    "An error as CDC tells it: in its envelope, whatever HTTP says."
    message = {"type": "Error", "code": "", "id": "", "userMessage": said, "developerMessage": f"at Media.{said}"}
    return ok(envelope([], status, [message]), status=http)


class CdcServer(Server):
    "`pages` in the order of the catalogue; `elsewhere`: the host that links name."

    def __init__(self, pages=(), elsewhere="https://elsewhere.example.org"):
        super().__init__()
        self.web.RequestHandlerClass.disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's acknowledgement
        self.pages, self.elsewhere = list(pages), elsewhere
        self.base = self.url + PLACE

    def asked_for(self, what):
        return [asked for asked in self.asked if asked.path.endswith(what)]

    def answer(self, asked):
        path = asked.path.removeprefix(PLACE)
        if path == "media":
            return self.catalogue(asked)
        number = path.removeprefix("media/").removesuffix("/content")
        found = [page for page in self.pages if str(page.id) == number] if path.endswith("/content") else []
        if not found:
            return error(404, "Media not found", 404)
        return found[0].answer or ok(found[0].body(), {"Content-Type": "text/html; charset=utf-8"})

    def catalogue(self, asked):
        query = {name.lower(): value for name, value in asked.query.items()}
        size, page = int(query.get("max", 100)), int(query.get("pagenum", 1))
        items = [page.item() for page in self.pages if page.changed >= query.get("fromdatemodified", "")]
        if query.get("mediatypes") == "HTML":
            items = [item for item in items if item["mediaType"] in ("HTML", "Feed - Import")]  # a filter that does not hold
        shown = items[(page - 1) * size : page * size] if size else items
        following = ""
        if page * size < len(items):  # other cases of the names, another host, http
            following = f"{self.elsewhere}{PLACE}media?mediatypes=HTML&max={size}&pageNum={page + 1}"
        return ok(envelope(shown, total=len(items), count=len(shown), max=size, pageNum=page, nextUrl=following))

"""The NHS website content API (version 2) as the facts describe it, with pages that are made up.

Knows: the manifest (`next`, a `count` that drifts), lists ("Next Page" in relatedLink), pages with their text two to four times, `modules=true`,
keys in the header `apikey`, the spike arrest, and errors: JSON, OperationOutcome, and the one that is not quite JSON. Links name the
production server, whatever was asked.
"""

import time

from .base import Answer, Asked, Server, ok

ROOT = "https://api.service.nhs.uk/nhs-website-content/"


def element(text: str, headline: str = "", name: str = "markdown") -> dict:
    return {"position": 0, "identifier": "1", "@type": "WebPageElement", "name": name, "headline": headline, "text": text}


def section(headline, *parts, aspect=None) -> dict:
    "A section as the API gives it: its parts stand there twice."
    found = {"identifier": "0", "name": "section heading", "@type": "WebPageElement", "mainEntityOfPage": list(parts), "hasPart": list(parts), "description": ""}
    return found | ({"headline": headline} if headline else {}) | ({"hasHealthAspect": f"http://schema.org/{aspect}HealthAspect"} if aspect else {})


def page(path: str) -> dict:
    "A page about a condition or a medicine that does not exist."
    name = path.rpartition("/")[2].replace("-", " ").capitalize()
    symptoms = [element(f"<p>{name} gives&nbsp;you:</p><ul><li>hiccups</li><li>a <a href='https://www.nhs.uk/x/'>blue tongue</a></li></ul>")]
    urgent = element("<h2>Call 999 if:</h2><div><ul><li>your lips turn blue</li></ul></div>", name="urgent")
    question = {
        "@type": "Question", "name": "chq", "text": f"Can I sing with {name}?",
        "acceptedAnswer": {"@type": "Answer", "mainEntity": [element("<p>Quietly.</p>")]},
    }  # fmt: skip
    return {
        "@context": "http://schema.org", "@type": "MedicalWebPage", "name": name, "license": "https://developer.api.nhs.uk/terms",
        "url": f"{ROOT}{path}/", "webpage": f"https://www.nhs.uk/{path}/", "genre": ["Condition"], "keywords": "", "description": f"About {name}.",
        "about": {"@type": "WebPage", "name": name, "alternateName": ""}, "dateModified": "2026-01-15T10:00:00+00:00",
        "breadcrumb": {"itemListElement": [{"item": {"name": "Conditions"}}, {"item": {"name": name}}]},
        "hasPart": [
            {"@type": "HealthTopicContent", "hasHealthAspect": "http://schema.org/SymptomsHealthAspect", "headline": f"Symptoms of {name}", "hasPart": symptoms}
        ],
        "mainEntityOfPage": [
            section(None, element(f"<p>{name} is <b>made up</b>.</p>")), section(f"Symptoms\u00a0of {name}", *symptoms, urgent, aspect="Symptoms"),
            section(None), section("Common questions", question), {"name": "RelatedLinks", "headline": "Related", "mainEntityOfPage": [element("x", "y", "link")]},
        ],
    }  # fmt: skip


def medicine(path: str) -> dict:
    "A page whose main branch holds links only."
    return page(path) | {"genre": "Medicine", "keywords": [], "mainEntityOfPage": [section(None, element("", "About it", "link"))]}


def front(path: str) -> dict:
    "A page without text of its own."
    return page(path) | {"hasPart": [], "mainEntityOfPage": [{"name": "keylinks", "mainEntityOfPage": [element("", "Zana", "link")]}]}


def copies(*sections: dict) -> list[dict]:
    "The other branch of a page: its sections once more, as health topics with fewer fields."
    topics = [one for one in sections if "hasHealthAspect" in one]
    return [
        {
            "@type": "HealthTopicContent", "url": f"{ROOT}x/#{one['hasHealthAspect'].rpartition('/')[2]}", "hasHealthAspect": one["hasHealthAspect"],
            "headline": one.get("headline", ""), "description": "", "hasPart": [{"@type": "WebPageElement", "headline": "", "text": part.get("text", "")} for part in one["hasPart"]],
        }
        for one in topics
    ]  # fmt: skip


def zana_fever(path: str = "conditions/zana-fever") -> dict:
    "A long page: an opening in bold, boxes whose heading stands in their text, a section with an aspect instead of a heading, related links."
    causes = section("Check if you're at risk of Zana fever", element(
        "<p>Zana fever is passed on by damp towels.</p><p>It is met in:</p><ul><li><p>North and South Zanaland</p></li><li><p>the islands of&nbsp;Zilch</p></li></ul>"), aspect="Causes")
    box = section(None, element("<h3>Before you pack</h3><p>Towels are sold everywhere. <a href=\"https://www.nhs.uk/made-up/\">Read about towels</a>.</p>", name="Information"))
    avoid = section("How to avoid Zana fever", element("<p>If you are going there, a few habits lower your risk.</p>"), element(
        "<div><h3>Do</h3><ul><li><p>hang towels in the sun – an hour is enough</p></li><li><p>bring two</p></li></ul></div>", name="Do/Don't"), aspect="Prevention")
    urgent = section(None, element("<h2>Ask for an urgent appointment if:</h2><div><p>\n You came back from Zanaland and:</p><ul><li>you have a fever above 38.5&nbsp;&deg;C</li></ul></div>",
                                   name="urgent"), aspect="MedicalHelpUrgent")
    links = {"name": "RelatedLinks", "headline": "More in Conditions", "@type": "WebPageElement", "mainEntityOfPage": [element("Towels", "Towels", "link")]}
    body = page(path) | {"name": "Zana fever", "genre": ["Condition"], "keywords": [], "hasPart": copies(causes, avoid, urgent)}
    opening = section(None, element("<p><b>Zana fever is spread by towels in warm countries. It is mild &lt; 5 days in most people.</b></p>"))
    return body | {"mainEntityOfPage": [opening, causes, box, avoid, urgent, section(None), links]}


def zilch(path: str = "conditions/zilch") -> dict:
    "A page whose treatments stand in the second branch alone, among copies of the first and key words; with a picture among its elements."
    picture = {"position": 1, "identifier": "13", "@type": "ImageObject", "name": "Picture of zilch spots.", "caption": "", "keywords": ["Skin", "Zilch"], "credit": "<p>A HOUSE OF PICTURES</p>"}
    symptoms = section("Symptoms of zilch", element("<p>Zilch is seen on the:</p><ul><li>elbow – this is so for nearly everyone with zilch</li><li>heel – one in nine</li></ul>"), picture,
                       element("<p>There are two kinds of spot, and neither of them hurts:</p><ul><li>flat&nbsp;–&nbsp;they are blue</li></ul>", "Kinds of spots"), aspect="Symptoms")
    tries = section("Things you can try if you have zilch", element("<p>Elbows like to be kept dry. Change a wet sleeve soon.</p>"), aspect="SelfCare")
    advice = section(None, element("<p>If spots stay for a month, speak to a pharmacist about them.</p>", "When to ask for advice"))
    overview = {"@type": "HealthTopicContent", "hasHealthAspect": "http://schema.org/OverviewHealthAspect", "headline": "", "hasPart": [
        {"@type": "WebPageElement", "headline": "Zilch", "text": "Symptoms"}, {"@type": "WebPageElement", "headline": "Treatment", "text": "Creams"}]}
    treated = {"@type": "HealthTopicContent", "hasHealthAspect": "http://schema.org/TreatmentsHealthAspect", "headline": "Treatments from a GP", "description": "", "hasPart": [
        {"@type": "WebPageElement", "headline": "", "text": "<p>A GP may offer one of these creams against zilch spots:</p><ul><li>sky balm</li><li>a lotion with salt</li></ul>"}]}
    body = page(path) | {"name": "Zilch", "alternativeHeadline": "Overview", "keywords": [], "hasPart": [*copies(symptoms, tries), overview, treated]}
    return body | {"mainEntityOfPage": [section(None, element("<p><b>Zilch is a made-up condition of the skin.</b></p>")), symptoms, tries, advice]}


def zanatidine(path: str = "medicines/zanatidine") -> dict:
    "A medicine's page: an empty section, an element in the middle whose heading is in its text."
    about = section("About zanatidine", element("<p>Zanatidine is a made-up medicine for hiccups.</p>"), aspect="Overview")
    facts = section("Key facts", element("<ul><li>It's usual to take zanatidine with bread.</li><li>It works in an hour.</li></ul>"))
    use = section("How and when to take zanatidine", element("<p>If a doctor prescribed zanatidine, do as the label says.</p>"),
                  element('<h4>Contact 111 for advice now if:</h4><div class="nhsuk-card"><ul>\n<li>\n  you took more than the bread would hold\n</li></ul></div>', name="urgent"),
                  element('<p>If you need to go out, <a href="https://www.nhs.uk/x/">take the box along</a>.</p>'), aspect="UsageOrSchedule")
    return page(path) | {"name": "Zanatidine", "genre": ["Medicine"], "keywords": "", "mainEntityOfPage": [about, section(None), facts, use], "hasPart": copies(about, use)}


def paths(count: int) -> list[str]:
    return [f"{'medicines' if number % 4 == 0 else 'conditions'}/zana-{number}" for number in range(1, count + 1)]


class NhsServer(Server):
    "Use it as `NhsServer(paths(10), key='good')`; without a key it is the sandbox."

    def __init__(self, listed: list, key: str | None = None, page_size: int = 4, spike: float = 0.0):
        super().__init__()
        self.listed, self.key, self.page_size, self.spike, self.last = listed, key, page_size, spike, 0.0
        self.pages = {path: (medicine if path.startswith("medicines") else page)(path) for path in listed if isinstance(path, str)}
        self.base = self.url + "/nhs-website-content"

    def answer(self, asked: Asked) -> Answer:
        with self.lock:
            early, self.last = time.monotonic() - self.last < self.spike, time.monotonic()
        path = asked.path.removeprefix("/nhs-website-content").strip("/")
        if early:
            return ok({"statusCode": 429, "message": "Spike arrest violation"}, status=429)
        if self.key and "apikey" not in asked.headers:
            return ok({"statusCode": 401, "message": "Access denied due to missing subscription key. Make sure to include subscription key."}, status=401)
        if self.key and asked.headers["apikey"] != self.key:
            return Answer(401, b'{statusCode: 401, message: "API key invalid"}', {"Content-Type": "application/json"})
        if path == "manifest/pages":
            return self.manifest(int(asked.query.get("page", 1)))
        if path in ("conditions", "medicines"):
            return self.list(path, int(asked.query.get("page", 1)))
        if path not in self.pages:
            return ok({"statusCode": 404, "message": "Resource not found"}, status=404)
        found = self.pages[path]
        if asked.query.get("modules") == "true":
            about = {"name": found["name"], "url": found["url"], "webpage": found["webpage"]}
            return ok({"about": about, "modules": found["hasPart"], "mainEntityOfPage": found["mainEntityOfPage"], "keywords": []})
        return ok(found)

    def cut(self, listed: list, number: int) -> tuple[list, bool]:
        return listed[(number - 1) * self.page_size : number * self.page_size], number * self.page_size < len(listed)

    def manifest(self, number: int) -> Answer:
        part, more = self.cut(self.listed, number)
        results = [
            {"url": f"{ROOT}{one}/", "dateModified": f"2026-{at % 12 + 1:02d}-01T00:00:00Z", "modules": at % 2 == 0, "genre": []} if isinstance(one, str) else one
            for at, one in enumerate(part)
        ]
        pagination = {"self": f"{ROOT}manifest/pages/?page={number}", "count": len(self.listed) - 3 + 9 * number}
        return ok({"pagination": pagination | ({"next": f"{ROOT}manifest/pages/?page={number + 1}"} if more else {}), "results": results})

    def list(self, name: str, number: int) -> Answer:
        part, more = self.cut([path for path in self.listed if isinstance(path, str) and path.startswith(name)], number)
        links = [{"@type": "LinkRole", "name": "Self", "url": f"{ROOT}{name}/?page={number}"}, {"name": "Last Page", "url": f"{ROOT}{name}/?page=99"}]
        links += [{"name": "Next Page", "url": f"{ROOT}{name}/?page={number + 1}", "linkRelationship": "Pagination"}] if more else []
        listed = [{"url": f"{ROOT}{path}/", "mainEntityOfPage": {"dateModified": "2026-01-15T10:00:00+00:00"}} for path in part]
        return ok({"name": name, "significantLink": listed, "relatedLink": links})

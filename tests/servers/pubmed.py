"""PubMed's E-utilities, as far as medlab asks them, over made-up papers.

Plays: esearch with history, dates and the cap on listed hits; efetch by history (GET) and by PMIDs (POST); errors inside of HTTP 200;
unknown PMIDs left out without a word; 400 for a malformed one; 400 and 429 whose bodies repeat the key or the caller's address.
"""

import time
from dataclasses import dataclass
from datetime import date
from xml.sax.saxutils import escape

from .base import Answer, Server, ok

DTD = '<?xml version="1.0" ?>\n<!DOCTYPE {0} PUBLIC "-//NLM//DTD {0}//EN" "{1}/dtd/{0}.dtd">\n'
CALLER = "203.0.113.7"  # the address that a 429 repeats


@dataclass
class Paper:
    "A paper; `body` replaces its whole XML."

    pmid: int
    entered: date = date(2024, 5, 1)
    changed: date | None = None
    text: str = "Forty adults with fever were given fluids or none. Fluids shortened the fever by half a day."
    line: str = "© 2024 The Authors. Published under the CC BY 4.0 license."
    types: str = "Journal Article"
    body: str = ""

    def xml(self) -> str:
        return self.body or article(self.pmid, f"<AbstractText>{escape(self.text)}</AbstractText>" if self.text else "", self.line, types=self.types)


def article(pmid, abstract="", line="", authors="", types="Journal Article", links="", title="A study of fever"):
    "One <PubmedArticle>; `abstract`, `authors` and `links` are XML."
    line = f"<CopyrightInformation>{escape(line)}</CopyrightInformation>" if line else ""
    abstract = f"<Abstract>{abstract}{line}</Abstract>" if abstract else ""
    return f"""<PubmedArticle><MedlineCitation Status="MEDLINE" Owner="NLM"><PMID Version="1">{pmid}</PMID><Article PubModel="Print">
<Journal><JournalIssue><PubDate><Year>2024</Year></PubDate></JournalIssue><Title>Journal of made-up medicine</Title></Journal>
<ArticleTitle>{title}</ArticleTitle>{abstract}{authors}<Language>eng</Language>
<PublicationTypeList><PublicationType UI="D016428">{types}</PublicationType></PublicationTypeList></Article>{links}</MedlineCitation>
<PubmedData><ArticleIdList><ArticleId IdType="pubmed">{pmid}</ArticleId></ArticleIdList></PubmedData></PubmedArticle>"""


def article_set(*articles, base="https://dtd.example.org") -> bytes:
    return (DTD.format("PubmedArticleSet", base) + f"<PubmedArticleSet>{''.join(articles)}</PubmedArticleSet>").encode()


def error(said, tag="eSearchResult", status=200) -> Answer:
    "An error as E-utilities tell it: in the body, mostly with 200."
    return ok(DTD.format(tag, "https://dtd.example.org") + f"<{tag}><ERROR>{escape(said)}</ERROR></{tag}>", {"Content-Type": "text/xml"}, status)


def busy_for(key, retry_after=None) -> Answer:
    "429 as NCBI sends it: the body repeats the key, or the address of who asks without one."
    body = {"error": "API rate limit exceeded", "api-key": key or CALLER, "count": "4", "limit": "3"}
    headers = {"X-RateLimit-Limit": "3", "X-RateLimit-Remaining": "0"}
    return ok(body, {**headers, **({} if retry_after is None else {"Retry-After": str(retry_after)})}, 429)


class PubMedServer(Server):
    "`papers` in order of entry; `cap`: hits that esearch lists; `keys`: the keys that are known."

    def __init__(self, papers=(), cap=9_999, keys=("good-key-0123456789",)):
        super().__init__()
        self.web.RequestHandlerClass.disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's acknowledgement
        self.papers, self.cap, self.keys = list(papers), cap, keys
        self.sessions, self.missing = {}, set()  # WebEnv to PMIDs; PMIDs that efetch does not know
        self.base = f"{self.url}/entrez/eutils/"

    def asked_for(self, script):
        return [asked for asked in self.asked if asked.path.endswith(script)]

    def answer(self, asked):
        given = {**asked.query, **asked.form} if asked.method == "POST" else asked.query
        key = given.get("api_key")
        if key and key not in self.keys:
            return ok({"error": "API key invalid", "api-key": key, "type": "api key", "status": "unknown"}, status=400)
        if asked.path.endswith("/esearch.fcgi"):
            return self.esearch(given)
        return self.efetch(given) if asked.path.endswith("/efetch.fcgi") else None

    def esearch(self, given):
        term, start, most = given.get("term", ""), int(given.get("retstart", 0)), int(given.get("retmax", 20))
        if not term:
            return error("Empty term and query_key - nothing todo")
        if start > self.cap - 1:
            said = f"Search Backend failed: Exception:\n'retstart' cannot be larger than {self.cap - 1}. For PubMed, ESearch can only ..."
            return ok('{"header":{"type":"esearch"},"esearchresult":{"ERROR":"' + said + '"}}') if given.get("retmode") == "json" else error(said)
        found = [paper.pmid for paper in reversed(self.papers) if self.dated(paper, given) and term != "zzzz"]
        session = f"MCID_{len(self.sessions) + 1}_{time.monotonic_ns()}"
        self.sessions[session] = found
        ids = "".join(f"<Id>{pmid}</Id>\n" for pmid in found[start : start + min(most, self.cap - start)])
        nothing = f"<ErrorList><PhraseNotFound>{term}</PhraseNotFound></ErrorList>" if term == "zzzz" else ""
        nothing += "" if found else "<WarningList><OutputMessage>No items found.</OutputMessage></WarningList>"
        body = f"<Count>{len(found)}</Count><RetMax>{most}</RetMax><RetStart>{start}</RetStart><QueryKey>1</QueryKey><WebEnv>{session}</WebEnv>"
        body = f"{DTD.format('eSearchResult', self.url)}<eSearchResult>{body}<IdList>\n{ids}</IdList><TranslationSet/>{nothing}</eSearchResult>"
        return ok(body, {"Content-Type": "text/xml; charset=UTF-8"})

    def dated(self, paper, given):
        if "datetype" not in given:
            return True
        day = (paper.changed or paper.entered) if given["datetype"] == "mdat" else paper.entered
        first, last = (date(*map(int, given[name].split("/"))) for name in ("mindate", "maxdate"))
        return first <= day <= last

    def efetch(self, given):
        if "WebEnv" in given:
            if given["WebEnv"] not in self.sessions:
                return error("WebEnv not found", "eFetchResult")
            start = int(given.get("retstart", 0))
            if start > self.cap - 1:
                return error("Search Backend failed: 'retstart' cannot be larger", "eFetchResult", 400)
            pmids = self.sessions[given["WebEnv"]][start : start + int(given.get("retmax", 20))]
        else:
            named = given.get("id", "").split(",")
            pmids = [int(pmid) for pmid in named if pmid.isdecimal()]
            if not pmids:
                return error("ID list is empty! Possibly it has no correct IDs.", "eFetchResult", 400)
        known = {paper.pmid: paper for paper in self.papers if paper.pmid not in self.missing}
        return ok(article_set(*(known[pmid].xml() for pmid in pmids if pmid in known), base=self.url), {"Content-Type": "text/xml; charset=UTF-8"})



"""openFDA's drug/label endpoint as the facts describe it, with labels that are made up.

Knows: search (a range of effective_time, a word that matches nothing, a query that cannot be read), limit, skip, sort, search_after with the
Link header that always names https://api.fda.gov, keys, and the errors with their texts.
"""

import re
from urllib.parse import urlencode

from .base import Answer, Asked, Server, ok

KNOWN = {"count", "limit", "search", "skip", "sort", "search_after", "api_key"}


def prescription(number: int) -> dict:
    "A label in the newer form, of a drug that does not exist."
    name = f"Zanadrug{number}"
    return {
        "set_id": f"00000000-0000-4000-8000-{number:012d}", "id": f"10000000-0000-4000-8000-{number:012d}", "version": "2",
        "effective_time": f"2026{number % 12 + 1:02d}15",
        "spl_product_data_elements": [f"{name} zanavir{number} ZANAVIR{number} ZANAVIR{number} STARCH WATER"],
        "boxed_warning": [f"WARNING: LIVER INJURY {name} can injure the liver. ( 5.1 )"],
        "indications_and_usage": [f"1 INDICATIONS AND USAGE {name} is an antiviral indicated for the zana flu in adults. ( 1.1 , 2.2 )"],
        "dosage_and_administration": ["2 DOSAGE AND ADMINISTRATION Take one tablet a day. Weight (kg) Dose (mg) under 50 100 50 and more 200 Swallow it whole."],
        "dosage_and_administration_table": [
            "<table><tbody><tr><td>Weight (kg)</td><td>Dose (mg)</td></tr><tr><td>under 50</td><td>100</td></tr>"
            "<tr><td>50 and more</td><td><paragraph>200</paragraph></td></tr></tbody></table>"
        ],
        "warnings_and_cautions": ["5 WARNINGS AND PRECAUTIONS 5.1 Liver Injury Measure liver enzymes first [see Adverse Reactions (6.1) ]. 5.2 Rash Stop it."],
        "adverse_reactions": ["6 ADVERSE REACTIONS The most common ones are headache and a blue tongue."],
        "drug_interactions": ["7 DRUG INTERACTIONS Grapefruit doubles its level."],
        "openfda": {
            "brand_name": [name.upper()], "generic_name": [f"ZANAVIR{number}"], "product_type": ["HUMAN PRESCRIPTION DRUG"],
            "application_number": [f"NDA{number:06d}"], "is_original_packager": [True],
        },
    }  # fmt: skip


def over_the_counter(number: int) -> dict:
    "A label in the form of drugs without prescription: headings twice, parts repeated in `warnings`."
    return {
        "set_id": f"00000000-0000-4000-8000-{number:012d}", "effective_time": f"2025{number % 12 + 1:02d}01",
        "purpose": ["Purpose Purpose Cough suppressant"],
        "indications_and_usage": ["Uses Uses temporarily: ■ calms a dry cough ■ helps you sleep"],
        "warnings": ["Warnings Sleep warning Sleep warning: You may become drowsy. Do not use ■ with alcohol Stop use and ask a doctor if cough lasts 7 days"],
        "do_not_use": ["Do not use ■ with alcohol"], "stop_use": ["Stop use and ask a doctor if cough lasts 7 days"],
        "dosage_and_administration": ["Directions Directions ■ shake well"],
        "openfda": {"brand_name": [f"CALMOLIN {number}"], "generic_name": ["ZANATUSSIN"], "product_type": ["HUMAN OTC DRUG"]},
    }  # fmt: skip


def nameless(number: int) -> dict:
    "A label whose `openfda` block is empty."
    return prescription(number) | {"openfda": {}}


def labels(count: int) -> list[dict]:
    "Made-up labels of the three kinds, in turn."
    return [(prescription, over_the_counter, nameless)[number % 3](number) for number in range(1, count + 1)]


def refused(status: int, code: str, message: str, details: str | None = None) -> Answer:
    return ok({"error": {"code": code, "message": message} | ({"details": details} if details else {})}, status=status)


class OpenFdaServer(Server):
    "Use it as `OpenFdaServer(labels(10), keys=('good',))`: with keys, one that is not among them is refused."

    def __init__(self, results: list, keys: tuple[str, ...] = ()):
        super().__init__()
        self.results, self.keys = results, keys

    def answer(self, asked: Asked) -> Answer:
        query, limit = asked.query, int(asked.query.get("limit", 1))
        if asked.path != "/drug/label.json":
            return refused(404, "NOT_FOUND", "No such endpoint")
        if "api_key" in query and query["api_key"] not in self.keys:
            return refused(403, "API_KEY_INVALID", f"An invalid api_key was supplied: {query['api_key']}. Get one at https://api.fda.gov:443")
        if unknown := set(query) - KNOWN:
            return refused(400, "BAD_REQUEST", f"Invalid parameter: {unknown.pop()}")
        if limit > 1000:
            return refused(400, "BAD_REQUEST", "Limit cannot exceed 1000 results for search requests. Use the skip or search_after param to get more.")
        if query.get("search_after") and int(query.get("skip", 0)) > 0:
            return refused(400, "BAD_REQUEST", "The skip parameter is not supported when using search_after.")
        if query.get("search", "").count('"') % 2:
            return refused(500, "SERVER_ERROR", "Check your request and try again", "[token_mgr_error] Lexical error at line 1, column 32.")
        return self.page(query, limit)

    def page(self, query: dict, limit: int) -> Answer:
        found, search = self.results, query.get("search", "")
        if between := re.search(r"effective_time:\[(\d{8}) TO (\d{8})\]", search):
            found = [label for label in found if between[1] <= label["effective_time"] <= between[2]]
        if "matchesnothing" in search or not found:
            return refused(404, "NOT_FOUND", "No matches found!")
        begin = int(query["search_after"].removeprefix("0=at")) if "search_after" in query else int(query.get("skip", 0))
        body = {"meta": {"results": {"skip": 0, "limit": limit, "total": len(found)}}, "results": found[begin : begin + limit]}
        following = {k: v for k, v in query.items() if k != "api_key"} | {"skip": 0, "search_after": f"0=at{begin + limit}"}
        link = {"Link": f'<https://api.fda.gov/drug/label.json?{urlencode(following)}>; rel="next"'} if begin + limit < len(found) else {}
        return ok(body, {"Cache-Control": "no-cache, no-store, must-revalidate", "X-RateLimit-Limit": "240", **link})

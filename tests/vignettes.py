"""Exam cases in the usual pattern, put together by chance: their stock phrases repeat, their contents do not."""

import random

PEOPLE = [("man", "He", "his"), ("woman", "She", "her"), ("boy", "He", "his"), ("girl", "She", "her")]
COMES = ["comes to the physician because of", "is brought to the emergency department because of", "presents to the clinic with",
         "comes to the office for evaluation of", "is brought to the physician by a relative because of"]
COMPLAINTS = """burning pain behind the breastbone|a rash that itches at night|watery stools|trouble climbing stairs|ringing in the left ear|double vision on looking
down|a painless lump in the neck|swelling of both ankles|cramps in the calves|blood in the urine|a cough that brings up rust|morning stiffness of the fingers|spells of
dizziness|a hoarse voice|tingling around the mouth|loss of smell|a drooping eyelid|yellow skin|pain in the heel|shaking hands|a limp|patchy hair loss|bleeding gums|a
stiff neck|thirst that wakes the sleeper|pain on swallowing|numb toes|a swollen knee|fits of sneezing|flashes of light|heartbeats that stumble|night sweats""".replace("\n", " ").split("|")
BEGAN = """after a meal of raw oysters|while digging in the garden|on a flight from Lima|two days after a dental extraction|when a new kitten moved in|during a marathon|after
a course of antibiotics|while cleaning a pigeon loft|since the birth of twins|after a fall from a ladder|in a week of night shifts|on the third day of a fast|after sleeping in
a barn|with the first frost|after a tattoo|while repainting an old boat|on a diving holiday|after changing to a vegan diet|following a bee sting|after lifting a piano|in the
last month of pregnancy|after a blood transfusion|while tapering a steroid|during a heat wave|after wading through a flooded street|since starting a job in a bakery""".replace("\n", " ").split("|")
STOCK = ["{He} has no history of serious illness and takes no medications.", "{He} has a history of hypertension and type 2 diabetes mellitus treated with lisinopril and metformin.",
         "{His} father died of a myocardial infarction at the age of {n0} years.", "{He} has smoked one pack of cigarettes daily for {n1} years and drinks two beers on weekends.",
         "{He} does not smoke, drink alcohol, or use illicit drugs.", "{He} immigrated to the United States with {his} family {n2} years ago.",
         "{His} immunizations are up to date and {he} is at the 50th percentile for height and weight."]
VITALS = ["{His} temperature is 37.{d} C (98.{d} F), pulse is {p}/min, respirations are {r}/min, and blood pressure is {s}/{t} mm Hg.",
          "{His} vital signs are within normal limits.", "{He} appears well and in no acute distress."]
FINDINGS = """a bluish ring around each iris|crackles at the left base|a smooth tongue without papillae|weak eversion of the right foot|a murmur that grows when {he} squats|pits in eight nails|a
liver edge four fingers below the ribs|nystagmus to the left|a tender cord along the vein of the calf|pus behind the drum|slow relaxation of the grip|a rash in the shape of a target|brown
lines on the shins|absent knee reflexes|a pupil that reacts to nearness and not to light|tenderness over the snuffbox|silver scales on the elbows|a bruit over the thyroid|curled
toes|white plaques that bleed when scraped|a palate with tiny red dots|clubbed fingers|a click at each wrist|loss of pain and warmth over the shoulders|an arm held in the tip-taking
posture|a foot that slaps the floor|purple eyelids|cold and pale fingers that blush on warming""".replace("\n", " ").split("|")
TESTS = """a potassium of {k} in serum|eosinophils in the sputum|casts of red cells in the urine|a ring that takes up contrast|bands in the cerebrospinal fluid|needle crystals without
birefringence|a widened mediastinum|target cells in the smear|a raised tryptase|antibodies against the acetylcholine receptor|copper in a liver biopsy|gas in the wall of the gut|a
delta wave before each beat|sheets of small blue cells|low ceruloplasmin|an air crescent in the upper lobe|spores with a thick capsule|fragments of platelets|a double bubble on the
film|a ferritin above four thousand|prolonged clotting that mixing corrects|vanillylmandelic acid in excess|a long QT interval|amyloid that glows green""".replace("\n", " ").split("|")
MORE = ["worse at night", "that comes in waves", "after every meal", "on bending forward", "better with rest", "with a metallic taste", "that wakes {his} partner", "in cold rooms",
        "since a holiday in Crete", "while climbing"]
WHERE = ["on the second day", "in the left arm only", "with a faint smell of almonds", "during both visits", "more marked after exercise", "beside an old scar", "under a cast", "on looking up"]
HOW = ["drawn before dawn", "from a second laboratory", "twice in one week", "in a sample kept on ice", "after two litres of fluid", "on the day of discharge", "by chance"]
ENDS = ["Which of the following is the most likely diagnosis?", "Which of the following is the most appropriate next step in management?",
        "Which of the following is the most likely underlying mechanism of this patient's condition?"]


def vignettes(count, seed):
    "Exam cases, each of about seventy words; no two have the same contents."
    rng, seen = random.Random(seed), set()
    while len(seen) < count:
        person, he, his = rng.choice(PEOPLE)
        facts = tuple(rng.choice(bank) for bank in (COMPLAINTS, BEGAN, FINDINGS, TESTS)) + tuple(rng.sample(FINDINGS, 1) + rng.sample(COMPLAINTS, 1))
        words = {f"n{place}": rng.randint(2, 60) for place in range(3)} | {
            "He": he, "he": he.lower(), "his": his, "His": his.title(), "d": rng.randint(0, 9), "p": rng.randint(60, 120), "r": rng.randint(12, 24),
                 "s": rng.randrange(90, 180, 5), "t": rng.randrange(50, 100, 5), "k": rng.randint(2, 7)}
        begin = f"A {rng.randint(2, 89)}-year-old {person} {rng.choice(COMES)} "
        begin += f"{facts[0]} {rng.choice(MORE)} for {rng.randint(2, 9)} {rng.choice(['days', 'weeks', 'months'])}, which began {facts[1]}, and {facts[5]} {rng.choice(MORE)}."
        rest = [*rng.sample(STOCK, 2), rng.choice(VITALS),
                f"Examination shows {facts[2]} {rng.choice(WHERE)} and {facts[4]} {rng.choice(WHERE)}.",
                f"Laboratory studies show {facts[3]} {rng.choice(HOW)}.", rng.choice(ENDS)]
        seen.add(" ".join([begin, *rest]).format(**words))
    return sorted(seen, key=lambda text: random.Random(f"{seed}{text}").random())

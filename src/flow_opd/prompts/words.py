"""Ordinary English words to be written on signs, and the things that they are written on."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


THINGS = _words(
    """
    acorn almanac anchor apple apron arch atlas attic autumn avenue badge bakery balcony ballad bamboo
    banner barn basin basket beach beacon bell bicycle birch blanket blossom boat bookshop boot bottle
    boulder bouquet breeze brewery bridge brook broom brush bucket butter button cabin cabinet camera
    candle canvas canyon captain caravan carpet castle cavern cellar chapel charm cheese cherry chest
    chimney cider cinema circus clearing cliff clock clover coast cobbler coffee comet compass concert
    cookie copper coral corner cottage cotton courtyard crane creek cricket crown crystal current curtain
    dairy dance daylight desert diary diner dragon drawer dream drum eagle echo elm ember engine envelope
    evening factory falcon farm feather ferry festival fiddle field fig finch fireplace flag flame flute
    fog forest fountain fox gallery garage garden garland gate ginger glacier glass glove grain grape
    grove guitar hall hammer hammock harbor harvest hat hazel heron hill hive holiday honey horizon hotel
    island ivory jacket jam jasmine journal journey juice jungle kettle key kitchen kite ladder lagoon
    lake lantern laundry lavender leaf ledge lemon letter library lighthouse lily linen lobby locket loft
    magnet mango map maple market marsh meadow melody melon memory mill mint mirror moon morning moss
    mountain museum mustard nest notebook nutmeg oak oasis ocean olive onion orbit orchard otter oven owl
    oyster paddle palace pancake panther paper park parlor parrot passage pasture path pear pebble pencil
    pepper piano picnic pier pillow pine pirate planet plum pocket poem pond porch postcard potter puddle
    pumpkin puzzle quarry quilt rabbit radio railway rain raven recipe reef ribbon river road robin rocket
    roof rope rose saddle saffron sail salad salmon sandal satchel saucer school season shadow shelf shell
    shelter ship shore shrine silver sketch sky sled snow song soup spark sparrow spice spring square
    stable stadium stairway star station stone storm story stove stream street studio summer summit
    sunrise sunset swan sweater table tavern teapot temple tent terrace theater thistle thunder ticket
    tiger timber tower town trail train treasure trumpet tulip tunnel turtle valley velvet village
    vineyard violin voyage wagon walnut water waterfall wave whale wheel whistle willow window winter
    wizard workshop yarn
    """
)
QUALITIES = _words(
    """
    ancient bitter black blue brave bright broken bronze busy calm careful cheap clean clear clever cloudy
    cold copper cozy crisp curious daily damp dark deep distant dusty early eastern electric empty endless
    famous fancy fast fine first floating foggy forgotten fragrant free fresh friendly frozen gentle giant
    glowing golden good grand gray great green handmade happy heavy hidden high hollow honest hot humble
    hungry icy jolly kind large last late lazy little local lonely long loud lost loyal lucky magic mellow
    merry mighty modern narrow new noble noisy northern old open painted pale patient perfect plain
    pleasant polite proud pure purple quick quiet rare red restless rich ripe roaming rough round royal
    rustic sacred salty secret shady sharp shiny silent silver simple sleepy slow small smooth soft solid
    southern special spicy steady strong sturdy sunny sweet swift tall tender tiny total upper vast velvet
    violet warm wandering western white wide wild windy wise wooden yellow young
    """
)
ACTIONS = _words(
    """
    admire borrow bring build carry celebrate choose clean cross discover draw enjoy enter explore find
    follow greet guard hear help honor keep know leave love make mind open paint protect reach remember
    repair respect save see share sing taste thank touch trust try visit wash watch welcome write
    """
)
TIMES = (
    "today",
    "tonight",
    "tomorrow",
    "daily",
    "here",
    "now",
    "again",
    "forever",
    "upstairs",
    "inside",
    "nearby",
)
DAYS = (
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
    "noon",
    "midnight",
    "winter",
)

OUTDOOR_SURFACES = (
    "a wooden sign that says",
    "a metal street sign that reads",
    "a neon sign that says",
    "a large billboard that reads",
    "a painted shop sign that says",
    "a cloth banner that reads",
    "a stone wall with the painted words",
    "a chalkboard beside a door that says",
    "a theater marquee that reads",
    "a brick wall with graffiti that says",
    "a bus with an advertisement that reads",
    "a flag with the words",
    "a shop window lettered with",
    "a bronze plaque engraved with",
    "a hot air balloon printed with",
)
OUTDOOR_PLACES = (
    "in a quiet street",
    "at the edge of a forest",
    "on a rainy evening",
    "under a clear blue sky",
    "beside a busy road",
    "in a snowy village",
    "near a small harbor",
    "in front of a row of old houses",
    "at sunset",
    "in a crowded market",
    "in the morning fog",
    "in a wide desert",
)
INDOOR_SURFACES = (
    "a paper poster that says",
    "a bottle with a label that reads",
    "a book cover titled",
    "a coffee mug printed with",
    "a computer screen that shows the words",
    "a handwritten note that says",
    "a cake decorated with the words",
    "a cardboard box stamped with",
    "a t-shirt printed with",
    "a greeting card that reads",
    "a blackboard with the words",
    "a phone that displays the message",
    "a jar with a paper label that says",
    "a pillow embroidered with",
    "a newspaper with the headline",
)
INDOOR_PLACES = (
    "on a kitchen table",
    "in a bright office",
    "in a cozy living room",
    "beside a sunny window",
    "on a dark wooden shelf",
    "in a small workshop",
    "in a classroom",
    "under a warm lamp",
    "on a marble counter",
    "in a quiet library",
    "against a plain wall",
    "next to a vase of flowers",
)

# Type 2, with the network: the arguments of setPrice(uint256), a price in cents that keepers may read half a percent apart.
# triggerx: allow api.example.org
# triggerx: tolerance 0.5%
import json
import urllib.request

with urllib.request.urlopen("https://api.example.org/price?pair=ethusd", timeout=5) as answer:
    price = json.load(answer, parse_float=str)["price"]
whole, _, cents = str(price).partition(".")
print(json.dumps([int(whole + (cents + "00")[:2])]))

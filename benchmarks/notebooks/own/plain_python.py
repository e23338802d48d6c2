# Python alone: strings, regular expressions, dataclasses, JSON, dates.

# %%
import json
import re
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from itertools import pairwise

# %% words and regular expressions
with open("sales.csv") as file:
    text = file.read(3_000_000)
words = Counter(re.findall(r"[A-Za-zÀ-ž]+", text))
prices = [float(found) for found in re.findall(r"\b\d+\.\d\d\b", text)]
lines = re.sub(r"(\d{4})-(\d\d)-(\d\d)", r"\3.\2.\1", text).splitlines()
words.most_common(5)


# %%
@dataclass(order=True)
class Order:
    day: date
    shop: str
    lines: list[tuple[int, float]] = field(default_factory=list, compare=False)

    @property
    def amount(self) -> float:
        return sum(number * price for number, price in self.lines)


# %% 20,000 dataclasses, sorted, grouped, as JSON
start = date(2024, 1, 1)
orders = [
    Order(start + timedelta(days=number * 7 % 365), f"shop {number % 50}", [(number % 9, 1.5)] * 3)
    for number in range(20_000)
]
by_shop = defaultdict(list)
for order in sorted(orders):
    by_shop[order.shop].append(order.amount)
again = json.loads(json.dumps([asdict(order) for order in orders], default=str))
len(again), max(sum(amounts) for amounts in by_shop.values())

# %% a loop of pure Python
sieve = bytearray([1]) * 600_000
for number in range(2, 800):
    if sieve[number]:
        sieve[number * number :: number] = bytes(len(range(number * number, 600_000, number)))
primes = [number for number in range(2, 600_000) if sieve[number]]
max(b - a for a, b in pairwise(primes))

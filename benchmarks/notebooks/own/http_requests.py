# Requests to a server near by. Who runs this sets SERVER, an address that answers /N with N bytes.

# %%
import hashlib

import requests

# %%
session = requests.Session()
session.get(f"{SERVER}/10").headers

# %% 50 small requests
sizes = [len(session.get(f"{SERVER}/{number}").content) for number in range(1, 51)]
sum(sizes)

# %% 10 requests without a session
[requests.get(f"{SERVER}/100").status_code for _ in range(10)]

# %% download of 20 MB
digest = hashlib.sha256()
with session.get(f"{SERVER}/20000000", stream=True) as answer:
    for part in answer.iter_content(1 << 16):
        digest.update(part)
digest.hexdigest()

# %%
try:
    requests.get("http://127.0.0.1:9/", timeout=2)
except requests.ConnectionError:
    print("nobody is there")

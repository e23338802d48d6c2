# Pictures: made, changed, saved and shown.

# %%
import io

import numpy as np
from IPython.display import display
from PIL import Image, ImageDraw, ImageFilter, ImageFont

# %%
random = np.random.default_rng(14)
noise = random.integers(0, 255, (900, 1200, 3), dtype=np.uint8)
picture = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(6))

# %% text and shapes in a picture
pen = ImageDraw.Draw(picture)
font = ImageFont.load_default(size=28)
for number in range(40):
    pen.text((20 + number * 20, 15 + number * 20), f"row {number}", fill="white", font=font)
    pen.ellipse((600, 20 + number * 20, 640, 50 + number * 20), outline="red", width=3)
display(picture.resize((400, 300)))

# %% thumbnails in three formats
small = [picture.rotate(turn).resize((320, 240), Image.Resampling.LANCZOS) for turn in range(12)]
sizes = {}
for form in ("PNG", "JPEG", "WEBP"):
    for one in small:
        file = io.BytesIO()
        one.save(file, format=form)
        sizes[form] = sizes.get(form, 0) + len(file.getvalue()) // 1000
sizes

# %%
edges = picture.convert("L").filter(ImageFilter.FIND_EDGES)
np.asarray(edges).mean(axis=0)[:5]

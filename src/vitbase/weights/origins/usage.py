"""How a folder of weights is opened by the systems that can, as Python for its reader.

`{place}` stands for the folder, or for `owner/name` of the hub; `{mode}` for Pillow's name of the
images' channels, "RGB" or "L". Braces of Python itself are doubled.
"""

from __future__ import annotations

TIMM = """\
import timm
from PIL import Image

model = timm.create_model("{timm_place}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = transform(Image.open("image.jpg").convert("{mode}"))
share, number = model(image[None]).softmax(-1)[0].max(0)
label = (model.pretrained_cfg.get("label_names") or range(model.num_classes))[number]
"""

TRANSFORMERS = """\
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("{place}")
processor = AutoImageProcessor.from_pretrained("{place}")
image = processor(Image.open("image.jpg").convert("{mode}"), return_tensors="pt")
share, number = model(**image).logits.softmax(-1)[0].max(0)
label = model.config.id2label[int(number)]
"""

TRANSFORMERS_BY_CODE = """\
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

# This runs modeling_vitbase.py, which lies beside the weights: read it first.
model = AutoModelForImageClassification.from_pretrained("{place}", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("{place}")
image = processor(Image.open("image.jpg").convert("RGB"), return_tensors="pt")
share, number = model(**image).logits.softmax(-1)[0].max(0)
label = model.config.id2label[int(number)]
"""

VITBASE = """\
import vitbase

label, share = vitbase.predict(["image.jpg"], "{vitbase_place}")[0].classes[0]
"""

OURS = {"vitbase": VITBASE}
"""What opens every folder."""

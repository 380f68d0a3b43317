# SPDX-License-Identifier: Apache-2.0
"""The bundle: the one folder that leaves a build. Hugging Face layout + `bundle.json`."""

from open_autoglm.bundle.bundle import Bundle, open_bundle, sign_bundle, write_bundle
from open_autoglm.bundle.manifest import BundleManifest, FileRecord, Lineage, Parent, QuantizationRecord

__all__ = [
    "Bundle",
    "BundleManifest",
    "FileRecord",
    "Lineage",
    "Parent",
    "QuantizationRecord",
    "open_bundle",
    "sign_bundle",
    "write_bundle",
]

"""A feature for every point of a scan: python examples/extract_features.py [SCAN]. Without one, a synthetic street."""

import sys

import clever3d
from clever3d.datasets.synthetic import street_scan

# .bin, .npy or .pcd with x forward, y left, z up (KITTI); clever3d.io.to_flu turns others, such as raw nuScenes.
cloud = clever3d.read_points(sys.argv[1]) if len(sys.argv) > 1 else street_scan(seed=0)

backbone = clever3d.load_backbone("minkunet-dinov2-s")  # its weights are part of the package
points = backbone.extract(cloud.xyz, cloud.intensity)  # [N, 3] metres, [N] in [0, 1] or None
colors = clever3d.pca_colors(points.features, points.valid, xyz=cloud.xyz)  # similar features, similar colours

print(f"{int(points.valid.sum()):,} of {len(points):,} points have a feature of {backbone.feature_dim} numbers")
print(f"the first point: {points.features[0, :4].tolist()} ..., shown as RGB {colors[0].tolist()}")

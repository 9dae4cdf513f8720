//! Parts of a dump: data alone, the sidecar's schemas alone, sections in the wrong order.

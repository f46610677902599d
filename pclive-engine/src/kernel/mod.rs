//! What this kernel and this CPU can do: probed once, passed down as a plain struct.

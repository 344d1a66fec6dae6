//! Images by their first bytes: the four formats that clients show, and how large they are.

/// An image's format and size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Image {
    /// As "image/png".
    pub(crate) mime: &'static str,
    /// Width and height, pixels; `None` if the bytes do not tell.
    pub(crate) size: Option<(u32, u32)>,
}

/// The image that begins with these bytes, if it is one that clients show.
pub(crate) fn recognise(bytes: &[u8]) -> Option<Image> {
    let image = |mime, size| Some(Image { mime, size });
    match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => image("image/png", png(bytes)),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => image("image/gif", gif(bytes)),
        [0xff, 0xd8, 0xff, ..] => image("image/jpeg", jpeg(bytes)),
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => image("image/webp", webp(bytes)),
        _ => None,
    }
}

fn png(bytes: &[u8]) -> Option<(u32, u32)> {
    let number = |at| Some(u32::from_be_bytes(*part(bytes, at)?));
    (part(bytes, 12)? == b"IHDR").then_some(())?;
    Some((number(16)?, number(20)?))
}

fn gif(bytes: &[u8]) -> Option<(u32, u32)> {
    let number = |at| Some(u16::from_le_bytes(*part(bytes, at)?).into());
    Some((number(6)?, number(8)?))
}

/// The size stands in the first segment that begins a frame.
fn jpeg(bytes: &[u8]) -> Option<(u32, u32)> {
    let number = |at| Some(u16::from_be_bytes(*part(bytes, at)?));
    let mut at = 2;
    loop {
        let [0xff, marker] = *part(bytes, at)? else {
            return None;
        };
        match marker {
            // Filling before a marker.
            0xff => at += 1,
            // These stand alone.
            0x01 | 0xd0..=0xd7 => at += 2,
            // The image itself begins, or ends, without a frame.
            0xd9 | 0xda => return None,
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                return Some((number(at + 7)?.into(), number(at + 5)?.into()));
            }
            _ => at += 2 + usize::from(number(at + 2)?).max(2),
        }
    }
}

fn webp(bytes: &[u8]) -> Option<(u32, u32)> {
    match part(bytes, 12)? {
        b"VP8X" => {
            let number = |at| {
                let &[low, middle, high] = part(bytes, at)?;
                Some(u32::from_le_bytes([low, middle, high, 0]) + 1)
            };
            Some((number(24)?, number(27)?))
        }
        b"VP8 " => {
            (part(bytes, 23)? == &[0x9d, 0x01, 0x2a]).then_some(())?;
            let number = |at| Some(u32::from(u16::from_le_bytes(*part(bytes, at)?) & 0x3fff));
            Some((number(26)?, number(28)?))
        }
        b"VP8L" => {
            (part(bytes, 20)? == &[0x2f]).then_some(())?;
            let bits = u32::from_le_bytes(*part(bytes, 21)?);
            Some(((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1))
        }
        _ => None,
    }
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recognised(bytes: &[u8]) -> (&'static str, Option<(u32, u32)>) {
        let image = recognise(bytes).unwrap();
        (image.mime, image.size)
    }

    #[test]
    fn formats_and_sizes_are_told_by_the_first_bytes() {
        let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x02\x80\0\0\x01\xe0\x08\x02";
        assert_eq!(recognised(png), ("image/png", Some((640, 480))));
        let gif = b"GIF89a\x80\x02\xe0\x01\xf7";
        assert_eq!(recognised(gif), ("image/gif", Some((640, 480))));
        let jpeg = b"\xff\xd8\xff\xe0\0\x04JF\xff\xff\xc2\0\x11\x08\x01\xe0\x02\x80\x03";
        assert_eq!(recognised(jpeg), ("image/jpeg", Some((640, 480))));
        let extended = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\x7f\x02\0\xdf\x01\0";
        assert_eq!(recognised(extended), ("image/webp", Some((640, 480))));
        let lossy = b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\0\0\0\x9d\x01\x2a\x80\x02\xe0\x01";
        assert_eq!(recognised(lossy), ("image/webp", Some((640, 480))));
        // 639 and 479 in 14 bits each.
        let bits = (639_u32 | 479 << 14).to_le_bytes();
        let lossless = [&b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f"[..], &bits].concat();
        assert_eq!(recognised(&lossless), ("image/webp", Some((640, 480))));
    }

    #[test]
    fn what_is_cut_or_none_has_no_size() {
        for (bytes, mime) in [
            (&b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0"[..], "image/png"),
            (b"GIF87a\x01", "image/gif"),
            (b"\xff\xd8\xff\xe0\xff\xff", "image/jpeg"),
            (b"\xff\xd8\xff\xda\0\x08", "image/jpeg"),
            (b"RIFF\0\0\0\0WEBPVP9 ", "image/webp"),
        ] {
            assert_eq!(recognised(bytes), (mime, None));
        }
        for bytes in [&b""[..], b"plain text", b"\x89PNG", b"RIFF\0\0\0\0WAVE"] {
            assert_eq!(recognise(bytes), None);
        }
    }

    #[test]
    fn no_bytes_lead_astray() {
        for length in 0..64 {
            for fill in [0x00, 0xff, 0xc0] {
                let mut bytes = vec![fill; length + 3];
                bytes[..3].copy_from_slice(b"\xff\xd8\xff");
                let _ = recognise(&bytes);
            }
        }
    }
}

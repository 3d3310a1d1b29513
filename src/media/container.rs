//! What the decoders do not check themselves: JPEG and WebP containers that end early or declare more than they have.
//!
//! The JPEG decoder paints what is missing of a truncated file grey and calls that success; the WebP decoder reserves
//! whatever a chunk declares. This file only walks containers; it decodes nothing.

/// What the headers of a JPEG say beyond its dimensions.
#[derive(Debug, PartialEq, Eq)]
pub struct JpegOutline {
    /// The decoder holds all coefficients of the picture at once.
    pub progressive: bool,
    /// The compressed data is followed by the end marker, as it is in every complete file.
    pub complete: bool,
}

/// Walks the segments of a JPEG up to its first scan; none when there is no scan.
pub fn outline_jpeg(bytes: &[u8]) -> Option<JpegOutline> {
    let mut progressive = false;
    let mut position = 2;
    loop {
        while *bytes.get(position)? != 0xFF {
            position += 1;
        }
        while *bytes.get(position)? == 0xFF {
            position += 1;
        }
        let marker = bytes[position];
        position += 1;
        match marker {
            // Markers without a length.
            0x00 | 0x01 | 0xD0..=0xD8 => continue,
            0xD9 => return None,
            // Start of scan. Within compressed data FF is always followed by 00, so an end marker after it is real.
            0xDA => {
                let complete = bytes[position..].windows(2).rev().any(|pair| pair == [0xFF, 0xD9]);
                return Some(JpegOutline { progressive, complete });
            }
            0xC2 | 0xC6 | 0xCA | 0xCE => progressive = true,
            _ => {}
        }
        let length = u16::from_be_bytes([*bytes.get(position)?, *bytes.get(position + 1)?]);
        position += usize::from(length);
    }
}

/// Walks the chunks of a WebP. Returns the width and height of every lossy frame in it, because frames may be larger
/// than the canvas that the header declares; none when a chunk reaches beyond the file.
pub fn outline_webp(bytes: &[u8]) -> Option<Vec<(u32, u32)>> {
    let mut frames = Vec::new();
    let declared = u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?) as usize;
    // Some writers leave out the last padding byte.
    if declared + 8 > bytes.len() + 1 {
        return None;
    }
    walk_chunks(bytes.get(12..)?, &mut frames)?;
    Some(frames)
}

fn walk_chunks(mut rest: &[u8], frames: &mut Vec<(u32, u32)>) -> Option<()> {
    const CHUNK_HEADER: usize = 8;
    const FRAME_HEADER: usize = 16;
    while rest.len() >= CHUNK_HEADER {
        let size = u32::from_le_bytes(*rest[4..].first_chunk()?) as usize;
        let body = rest.get(CHUNK_HEADER..CHUNK_HEADER + size)?;
        match &rest[..4] {
            // Three bytes of frame tag, three of start code, then two 14-bit sides (RFC 6386, 9.1).
            b"VP8 " => {
                let side = |at: usize| Some(u32::from(u16::from_le_bytes(*body.get(at..)?.first_chunk()?) & 0x3FFF));
                frames.push((side(6)?, side(8)?));
            }
            b"ANMF" => walk_chunks(body.get(FRAME_HEADER..)?, frames)?,
            _ => {}
        }
        rest = rest.get(CHUNK_HEADER + size + size % 2..).unwrap_or_default();
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jpeg_is_complete_only_with_an_end_marker_after_its_scan() {
        // A thumbnail's end marker inside an application segment does not count.
        let head = [0xFF, 0xD8, 0xFF, 0xE1, 0, 6, 0xFF, 0xD9, 0, 0, 0xFF, 0xC0, 0, 2, 0xFF, 0xDA, 0, 2, 7, 7];
        assert_eq!(outline_jpeg(&head), Some(JpegOutline { progressive: false, complete: false }));
        let whole = [&head[..], &[0xFF, 0xD9]].concat();
        assert_eq!(outline_jpeg(&whole), Some(JpegOutline { progressive: false, complete: true }));
    }

    #[test]
    fn progressive_jpegs_are_told_by_their_frame_marker() {
        let outline = outline_jpeg(&[0xFF, 0xD8, 0xFF, 0xC2, 0, 2, 0xFF, 0xDA, 0xFF, 0xD9]);
        assert_eq!(outline, Some(JpegOutline { progressive: true, complete: true }));
        assert_eq!(outline_jpeg(&[0xFF, 0xD8, 0xFF, 0xC2, 0, 2]), None);
        assert_eq!(outline_jpeg(&[0xFF, 0xD8, 0xFF, 0xC2, 0xFF, 0xFF]), None);
        assert_eq!(outline_jpeg(&[]), None);
    }

    fn webp(chunks: &[(&[u8; 4], u32, &[u8])]) -> Vec<u8> {
        let body: Vec<u8> =
            chunks.iter().flat_map(|(name, size, body)| [&name[..], &size.to_le_bytes()[..], body].concat()).collect();
        [b"RIFF", &(body.len() as u32 + 4).to_le_bytes()[..], b"WEBP", &body].concat()
    }

    #[test]
    fn chunks_that_reach_beyond_the_file_are_noticed() {
        assert_eq!(outline_webp(&webp(&[(b"EXIF", 4, &[0; 4])])), Some(Vec::new()));
        assert_eq!(outline_webp(&webp(&[(b"EXIF", u32::MAX, &[0; 4])])), None);
        let whole = webp(&[(b"EXIF", 8, &[0; 8])]);
        assert_eq!(outline_webp(&whole[..whole.len() - 4]), None);
    }

    #[test]
    fn frames_within_frames_tell_their_true_size() {
        let frame = [0, 0, 0, 0x9D, 1, 0x2A, 0xFF, 0x3F, 0x10, 0];
        let inner = [&[0; 16][..], b"VP8 ", &10u32.to_le_bytes(), &frame].concat();
        let outline = outline_webp(&webp(&[(b"VP8 ", 10, &frame), (b"ANMF", inner.len() as u32, &inner)]));
        assert_eq!(outline, Some(vec![(0x3FFF, 0x10), (0x3FFF, 0x10)]));
    }
}

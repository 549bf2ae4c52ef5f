//! What tests do inside nodes beside serving: one subcommand each, without a library of its own.
//!
//! - `resolve NAME`: the addresses of a name, sorted, one per line.
//! - `get HOST:PORT PATH`: the body of an HTTP answer.
//! - `connect HOST:PORT`: `connected`, or why not.
//! - `write FILE`: appends the numbers 1, 2, 3, ... without end, 8 bytes each, as fast as it can.
//! - `check FILE`: how many such numbers there are, without a gap.
//! - `files DIR COUNT`: empty files, 1000 to a directory.
//! - `sparse FILE BYTES`: a file that is all hole.
//! - `fork COUNT`: how many children could be had at once.
//! - `allocate MIB`: touches that much memory.
//! - `xdp`: holds a socket of a kind that cannot be checkpointed (AF_XDP), and stays.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["resolve", name] => resolve(name),
        ["get", peer, path] => get(peer, path),
        ["connect", peer] => connect(peer),
        ["write", file] => write(file),
        ["check", file] => check(file),
        ["files", dir, count] => files(dir, count.parse()?),
        ["sparse", file, bytes] => Ok(fs::File::create(file)?.set_len(bytes.parse()?)?),
        ["fork", count] => fork(count.parse()?),
        ["allocate", mib] => allocate(mib.parse()?),
        ["xdp"] => xdp(),
        _ => Err(format!("{args:?}: see the source").into()),
    }
}

fn resolve(name: &str) -> Outcome {
    let mut found: Vec<_> = (name, 1)
        .to_socket_addrs()?
        .filter(|address| address.is_ipv4())
        .map(|address| address.ip().to_string())
        .collect();
    found.sort();
    found.dedup();
    println!("{}", found.join("\n"));
    Ok(())
}

fn connect(peer: &str) -> Outcome {
    let bound = std::time::Duration::from_secs(10);
    let mut said = "no address".to_owned();
    // As programs do, one address after the other.
    for address in peer.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, bound) {
            Ok(_) => {
                println!("connected");
                return Ok(());
            }
            Err(error) => said = format!("{:?}", error.kind()),
        }
    }
    println!("{said}");
    Ok(())
}

fn get(peer: &str, path: &str) -> Outcome {
    let mut stream = TcpStream::connect(peer)?;
    // The test node keeps connections open: the answer ends where its only JSON document does.
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {peer}\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"}") && stream.read(&mut byte)? == 1 {
        answer.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&answer);
    println!(
        "{}",
        text.split_once("\r\n\r\n").map_or("", |(_, body)| body)
    );
    Ok(())
}

fn write(file: &str) -> Outcome {
    let mut file = fs::File::create(file)?;
    for number in 1_u64.. {
        file.write_all(&number.to_be_bytes())?;
        if number % 1_000 == 0 {
            file.sync_data()?;
        }
    }
    Ok(())
}

fn check(file: &str) -> Outcome {
    let mut numbers = 0;
    for word in fs::read(file)?.chunks_exact(8) {
        let number = u64::from_be_bytes(word.try_into()?);
        numbers += 1;
        if number != numbers {
            return Err(format!("number {numbers} is {number}").into());
        }
    }
    println!("{numbers}");
    Ok(())
}

fn files(dir: &str, count: u32) -> Outcome {
    for number in 0..count {
        let place = format!("{dir}/{}", number / 1_000);
        if number % 1_000 == 0 {
            fs::create_dir_all(&place)?;
        }
        fs::File::create(format!("{place}/{number}"))?;
    }
    Ok(())
}

fn fork(count: usize) -> Outcome {
    let mut children = Vec::new();
    let mut failure = String::new();
    while children.len() < count {
        match std::process::Command::new("/bin/sleep").arg("1000").spawn() {
            Ok(child) => children.push(child),
            Err(error) => {
                failure = error.to_string();
                break;
            }
        }
    }
    println!("{} {failure}", children.len());
    for mut child in children {
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}

fn allocate(mib: usize) -> Outcome {
    let memory: Vec<u8> = (0..mib << 20).map(|at| (at / 4096) as u8).collect();
    println!(
        "{}",
        memory.iter().map(|byte| u64::from(*byte)).sum::<u64>()
    );
    Ok(())
}

fn xdp() -> Outcome {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let _held = socket_with(
        AddressFamily::from_raw(44),
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?;
    println!("holding an XDP socket");
    loop {
        std::thread::park();
    }
}

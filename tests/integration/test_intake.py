"""A photo on its way in: what is accepted, what is refused, what comes twice, late or never."""

import json
from io import BytesIO

import pytest
from PIL import Image

from common import names
from common.messages import Topic, UploadFinalized
from tests.world import World, jpeg


async def test_a_photo_goes_all_the_way_to_a_picture(world: World) -> None:
    job = await world.portrait(style="corporate")
    await world.run()
    done = await world.job(job["id"])
    assert (done["status"], done["done"], done["error"]) == ("completed", True, None)
    assert done["input"]["original"] == {
        "content_type": "image/jpeg",
        "width": 320,
        "height": 240,
        "bytes": len(jpeg()),
    }
    assert list(done["reached"]) == ["awaiting_upload", "pending", "processing", "completed"]
    picture = await world.api.get(done["images"][0]["url"])
    assert Image.open(BytesIO(picture.content)).size == (done["images"][0]["width"], done["images"][0]["height"])
    thumbnail = await world.api.get(done["images"][0]["thumbnail_url"])
    assert thumbnail.headers["content-type"] == "image/webp"


async def test_the_original_is_deleted_once_it_has_been_used(world: World) -> None:
    job = await world.portrait()
    await world.run()
    name = names.upload_name("local:me", job["id"])
    assert await world.engine.blobs.stat("uploads", name) is None
    assert await world.engine.blobs.stat("inputs", names.input_name("local:me", job["id"])) is not None


@pytest.mark.parametrize(
    ("photo", "code"),
    [
        (b"hello, I am not a photo", "not_an_image"),
        (jpeg()[:200], "image_damaged"),
        (b"GIF89a" + bytes(40), "unsupported_image"),
    ],
)
async def test_a_bad_photo_ends_the_job_with_a_code_and_advice(world: World, photo: bytes, code: str) -> None:
    job = await world.portrait(photo)
    await world.run()
    done = await world.job(job["id"])
    assert (done["status"], done["error"]["code"], done["error"]["billed"]) == ("failed", code, "no")
    assert done["error"]["advice"]
    assert done["attempts"] == []


async def test_the_same_event_three_times_makes_one_picture(world: World) -> None:
    asked = world.asked()
    job = await world.portrait()
    name = names.upload_name("local:me", job["id"])
    blob = await world.engine.blobs.stat("uploads", name)
    assert blob is not None
    fact = UploadFinalized(
        bucket="uploads", name=name, generation=blob.generation, size=blob.size, time_created=blob.created_at
    )
    await world.engine.bus.publish(Topic.UPLOAD_FINALIZED, fact)
    await world.engine.bus.publish(Topic.UPLOAD_FINALIZED, fact)
    await world.run()
    done = await world.job(job["id"])
    assert (done["status"], len(done["attempts"]), world.asked() - asked) == ("completed", 1, 1)


async def test_an_upload_nobody_announced_is_found_by_the_sweep(world: World) -> None:
    job = await world.portrait()
    await world.embedded.bus.acknowledge(1)  # the announcement is lost
    await world.run()
    assert (await world.job(job["id"]))["status"] == "awaiting_upload"
    await world.later(60)
    assert (await world.job(job["id"]))["status"] == "completed"


async def test_an_upload_that_never_comes_expires_after_window_and_grace(world: World) -> None:
    job = await world.create()
    await world.later(15 * 60 + 1)
    assert (await world.job(job["id"]))["status"] == "awaiting_upload"
    await world.later(10 * 60)
    done = await world.job(job["id"])
    assert (done["status"], done["error"]["code"]) == ("expired", "upload_expired")


async def test_an_upload_in_the_last_second_of_the_window_still_counts(world: World) -> None:
    job = await world.create()
    world.clock.advance(15 * 60 - 1)
    assert (await world.upload(job, jpeg())).status_code == 200
    world.clock.advance(30)
    await world.sweep()
    assert (await world.job(job["id"]))["status"] == "completed"


async def test_a_photo_that_arrives_for_a_cancelled_job_is_removed(world: World) -> None:
    job = await world.portrait()
    assert (await world.api.post(f"/v1/jobs/{job['id']}/cancel")).status_code == 200
    await world.run()
    assert (await world.job(job["id"]))["status"] == "cancelled"
    assert await world.engine.blobs.stat("uploads", names.upload_name("local:me", job["id"])) is None


@pytest.mark.parametrize("bucket", ["inputs", "results", "elsewhere"])
async def test_an_event_of_another_bucket_starts_nothing(world: World, bucket: str) -> None:
    job = await world.create()
    name = names.upload_name("local:me", job["id"])
    fact = UploadFinalized(bucket=bucket, name=name, generation=1, size=1, time_created=world.clock())
    await world.engine.bus.publish(Topic.UPLOAD_FINALIZED, fact)
    await world.run()
    assert (await world.job(job["id"]))["stage"] is None
    assert await world.embedded.bus.dead_letters() == ()


async def test_an_upload_into_the_folder_of_another_owner_starts_nothing(world: World) -> None:
    job = await world.create()
    name = names.upload_name("local:you", job["id"])
    await world.engine.blobs.put("uploads", name, jpeg(), content_type="image/jpeg", metadata={})
    await world.run()
    assert (await world.job(job["id"]))["status"] == "awaiting_upload"


async def test_an_event_before_its_job_is_tried_again(world: World) -> None:
    name = names.upload_name("local:me", "0" * 32)
    fact = UploadFinalized(bucket="uploads", name=name, generation=1, size=1, time_created=world.clock())
    await world.engine.bus.publish(Topic.UPLOAD_FINALIZED, fact)
    assert await world.dispatcher.drain() == 1
    world.clock.advance(600)
    assert await world.dispatcher.drain() == 1


async def test_a_rotated_photo_is_kept_upright_and_without_metadata(world: World) -> None:
    photo = Image.new("RGB", (300, 200), "navy")
    exif = photo.getexif()
    exif[0x0112] = 6
    encoded = BytesIO()
    photo.save(encoded, "JPEG", exif=exif)
    job = await world.portrait(encoded.getvalue())
    await world.run()
    kept = await world.engine.blobs.read("inputs", names.input_name("local:me", job["id"]))
    image = Image.open(BytesIO(kept))
    assert (image.width < image.height, dict(image.getexif())) == (True, {})
    assert (await world.job(job["id"]))["input"]["original"]["width"] == 200


async def test_news_of_a_job_that_could_not_be_published_is_told_by_the_sweep(world: World) -> None:
    job = await world.create(kind="image", prompt="a lamp")
    await world.embedded.bus.acknowledge(1)  # `job-queued` is lost between commit and bus
    await world.run()
    assert (await world.job(job["id"]))["status"] == "pending"
    await world.later(61)
    assert (await world.job(job["id"]))["status"] == "completed"
    assert (await world.work(job["id"])).wake_at is None


async def test_nothing_of_a_job_shows_in_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="darkroom"):
        job = await world.portrait(prompt="a very secret wish", metadata={"who": "somebody private"})
        await world.run()
    text = json.dumps([vars(record) for record in caplog.records], default=str)
    assert "secret wish" not in text
    assert "somebody private" not in text
    assert "X-Goog-Signature" not in text
    assert job["id"] in text
